"""The command ``panovlm``: picks a command, runs it, prints errors as one clear message."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from panovlm.errors import PanoVLMError

COMMANDS = {
    "train": "train the stages of an experiment",
    "eval": "generate answers with a checkpoint and score them",
    "inspect": "show a checkpoint's configuration and where each setting came from",
    "add-metadata": "write the metadata that a checkpoint lacks",
    "ask": "ask a question about a panorama",
    "views": "draw what the model sees of a panorama",
    "demo": "the whole story on synthetic scenes: train, evaluate, lose the metadata, repair",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 1 when a check came out negative, 2 on an error, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(next((word for word in arguments if word in COMMANDS), None))
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    try:
        return _module(options.command).run(options)
    except PanoVLMError as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`panovlm inspect … | head`).
        sys.stdout = None
        return 0


def _parser(command: str | None) -> argparse.ArgumentParser:
    """Return the parser; only the chosen command's module is imported."""
    parser = argparse.ArgumentParser(
        prog="panovlm",
        description="Vision-language models on 360° panoramas: train, checkpoint, load, evaluate.",
    )
    parser.add_argument("--version", action=_Version)
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS)
        if name == command:
            _module(name).add_arguments(sub)
    return parser


def _module(command: str):
    return importlib.import_module(f"panovlm.cli.{command.replace('-', '_')}")


class _Version(argparse.Action):
    """Print the version (looked up only then)."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"panovlm {version('panovlm')}")  # noqa: T201
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
