"""``panovlm convert``: write a checkpoint in another format."""

from __future__ import annotations

import argparse
from pathlib import Path

from panovlm.cli.options import DTYPES, add_loading_options, dtype, loading_choices, nbytes
from panovlm.cli.quiet import quiet
from panovlm.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("checkpoint", type=Path, help="checkpoint file or folder")
    parser.add_argument("output", type=Path, help="file (safetensors, lightning) or folder")
    parser.add_argument(
        "--to",
        required=True,
        choices=("safetensors", "sharded", "huggingface", "lightning", "backbones"),
        help="backbones: the vision tower and the language model as models of their own",
    )
    parser.add_argument(
        "--merge-lora", action="store_true", help="add the adapters into the weights"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="type of the weights; default: each as it is"
    )
    parser.add_argument(
        "--max-shard-size", type=nbytes, default="5GB", help="largest file of a folder; default 5GB"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument(
        "--strict", action="store_true", help="refuse settings that would have to be assumed"
    )
    add_loading_options(parser)


def run(options: argparse.Namespace) -> int:
    """Convert, and say what was written."""
    quiet()
    if options.to == "backbones":
        return _extract(options)
    from panovlm.checkpoint.saving.convert import convert

    done = convert(
        options.checkpoint,
        options.output,
        to=options.to,
        merge_lora=options.merge_lora,
        dtype=dtype(options.dtype),
        max_shard_size=options.max_shard_size,
        overwrite=options.overwrite,
        strict=options.strict,
        **loading_choices(options),
    )
    print(f"{done.path}: {done.tensors} tensors, {done.nbytes:,} bytes, opened again: all equal")
    for name in done.document.assumed:
        print(f"assumed as before: {name}")
    return 0


def _extract(options: argparse.Namespace) -> int:
    if options.dtype:
        raise ConfigError("--dtype does not apply to backbones; they are written as they are.")
    from transformers.utils import logging

    from panovlm.checkpoint.saving.extract import extract_backbones

    logging.disable_progress_bar()
    for folder in extract_backbones(
        options.checkpoint,
        options.output,
        merge_lora=options.merge_lora,
        overwrite=options.overwrite,
        strict=options.strict,
        **loading_choices(options),
    ):
        print(f"{folder}: opened again: all equal")
    return 0
