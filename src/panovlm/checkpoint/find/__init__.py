"""From a path to one checkpoint and the files that belong to it."""
