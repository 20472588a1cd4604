"""The command ``panovlm``: picks a command, runs it, prints errors as one clear message."""

from __future__ import annotations

import argparse
import gc
import importlib
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from panovlm.errors import ConfigError, PanoVLMError

COMMANDS = {
    "train": "train the stages of an experiment",
    "data": "check tables and their images before training",
    "eval": "generate answers with a checkpoint and score them",
    "inspect": "show a checkpoint's configuration and where each setting came from",
    "verify": "load a checkpoint step by step: does it load, as the model that was trained?",
    "explain": "show where one setting of a checkpoint came from and what else was considered",
    "diff": "compare two checkpoints: settings, names, shapes, types, and their weights",
    "add-metadata": "write the metadata that a checkpoint lacks",
    "repair": "find the settings that make a checkpoint compute what it did when it was saved",
    "convert": "write a checkpoint in another format, checked tensor by tensor",
    "ask": "ask questions about a panorama",
    "sweep": "train and compare many settings of one experiment",
    "views": "draw what the model sees of a panorama",
    "doctor": "show what this machine offers, and whether it works",
    "demo": "the whole story on synthetic scenes: train, evaluate, lose the metadata, repair",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 1 when a check came out negative, 2 on an error, 130 when interrupted, 141
        when the reader of the output went away.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(next((word for word in arguments if word in COMMANDS), None))
    try:
        options, unknown = parser.parse_known_args(arguments)
        if unknown:
            name = f"{parser.prog} {options.command}" if options.command else parser.prog
            raise ConfigError(f"unrecognized arguments: {' '.join(unknown)}. See `{name} --help`.")
        if options.command is None:
            parser.print_help()
            return 2
        code = _module(options.command).run(options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `panovlm inspect … | head`. What was not printed may not have been done either.
        sys.stdout = None
        return 128 + signal.SIGPIPE
    except (PanoVLMError, OSError) as error:
        if "--debug" in arguments:
            raise
        print(f"error: {_message(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        # By its name: most commands end without torch.
        if "--debug" in arguments or type(error).__name__ != "OutOfMemoryError":
            raise
        print(
            f"error: the accelerator's memory is full ({str(error).splitlines()[0]}) Lower "
            "--batch-size where there is one, or give --dtype bfloat16 or --device cpu.",
            file=sys.stderr,
        )
        return 2


def run() -> NoReturn:
    """Run one command as a process of its own, the console script."""
    # Imports make many objects and hardly any garbage, and a process that ends need not be cleared.
    # Looking for garbage all the same would take a fifth of the time of a short command.
    gc.set_threshold(50_000)
    code = main()
    gc.freeze()
    sys.exit(code)


def _message(error: Exception) -> str:
    """Return what to print of an error; the system's own (a full disk) say file and reason."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _parser(command: str | None) -> argparse.ArgumentParser:
    """Return the parser; only the chosen command's module is imported."""
    parser = _Parser(
        prog="panovlm",
        description="Vision-language models on 360° panoramas: train, checkpoint, load, evaluate.",
    )
    parser.add_argument("--version", action=_Version)
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show tracebacks of errors",
        )
        if name == command:
            _module(name).add_arguments(sub)
    return parser


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as every other error is reported."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See `{self.prog} --help`.")


def _module(command: str):
    return importlib.import_module(f"panovlm.cli.{command.replace('-', '_')}")


class _Version(argparse.Action):
    """Print the version (looked up only then)."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"panovlm {version('panovlm')}")
        parser.exit()
