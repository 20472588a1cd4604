"""Some 150 checkpoints, right ones and broken ones, put to every loader that might open them.

Run it with ``python -m benchmarks.gauntlet`` (see ``__main__``); the results stand in
``docs/gauntlet.md``.
"""
