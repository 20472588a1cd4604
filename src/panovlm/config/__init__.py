"""Settings: the schema, and reading them from files."""
