"""``python -m panovlm``: the command line, for where its script is not on the path."""

from panovlm.cli.main import run

run()
