"""Evaluation: asking a model every question of a table, scoring the answers, and reporting them."""
