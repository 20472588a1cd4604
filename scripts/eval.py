"""The same as `panovlm eval`; see `--help`."""

import sys

from _environment import use_project_environment

use_project_environment()

from panovlm.cli.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
