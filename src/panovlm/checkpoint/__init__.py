"""Opening, resolving, proving, loading, writing and repairing checkpoints."""
