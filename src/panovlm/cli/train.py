"""``panovlm train``: train the stages of an experiment."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from panovlm.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from panovlm.config.schema import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        default=os.environ.get("PANOVLM_CONFIG", "config.yaml"),
        help="experiment file (default: $PANOVLM_CONFIG, else config.yaml)",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings laid over the file, such as models.resampler_config.hidden_dim=48",
    )
    parser.add_argument(
        "--stage", help="stages to run, by name or number from 1, with commas; default all"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue an interrupted run where it stopped"
    )
    parser.add_argument(
        "--dry-run",
        "--preview",
        action="store_true",
        help="build without weights; print parameters, tokens and memory",
    )


def run(options: argparse.Namespace) -> int:
    """Train, or plan."""
    from rich.console import Console

    from panovlm.cli.quiet import quiet, quiet_trainer
    from panovlm.config.load import load_settings

    quiet()
    console = Console()
    settings = load_settings(options.config, options.overrides)
    names = chosen_stages(options.stage, settings.training.stages)
    if options.dry_run:
        _print_plan(settings, names, console)
        return 0
    from panovlm.training.run import leads, train

    quiet_trainer()
    folder = train(
        settings,
        config_file=Path(options.config),
        config_text=effective_config(Path(options.config), options.overrides),
        stages=names,
        resume=options.resume,
        console=console,
    )
    if leads():
        print(f"evaluate with: panovlm eval --checkpoint-dir {folder}")
    return 0


def chosen_stages(text: str | None, stages: Sequence[str]) -> tuple[str, ...]:
    """Read ``--stage``: names, older names, or numbers from 1, with commas.

    Raises:
        ConfigError: there is no such stage.
    """
    from panovlm.config.schema import STAGE_ALIASES

    if text is None or text == "all":
        return tuple(stages)
    chosen: list[str] = []
    for word in (part.strip() for part in text.split(",")):
        if word.isascii() and word.isdecimal() and 1 <= int(word) <= len(stages):
            chosen.append(stages[int(word) - 1])
            continue
        name = STAGE_ALIASES.get(word, word)
        if name not in stages:
            raise ConfigError(
                f"--stage {word}: the experiment has {', '.join(stages)} (or numbers 1 to "
                f"{len(stages)})."
            )
        chosen.append(name)
    return tuple(sorted(set(chosen), key=list(stages).index))


def effective_config(path: Path, overrides: Sequence[str]) -> bytes | None:
    """Return what the run folder's ``config.yaml`` must say when it is not the file itself."""
    if not overrides:
        return None
    import yaml

    from panovlm.config.load import apply_overrides, load_mapping

    mapping = apply_overrides(load_mapping(path)[0], overrides)
    head = f"# {path.name} with {' '.join(overrides)}\n"
    return (head + yaml.safe_dump(mapping, sort_keys=False)).encode()


def _print_plan(settings: Settings, stages: Sequence[str], console: Console) -> None:
    """Print what training would be."""
    from panovlm.training.dry_run import plan
    from panovlm.training.freeze import table

    with console.status("reading the backbones' configurations"):
        found = plan(settings, stages)
    for stage in found.stages:
        console.print(table(stage.components, f"stage {stage.name}"))
        console.print(
            f"  weights, gradients and optimizer: {_size(stage.memory)} "
            "(activations come on top)\n",
            highlight=False,
        )
    before, after = found.tokens_per_view
    console.print(
        f"{found.views} views per panorama, {before} tokens each from the tower, {after} after the "
        f"resampler; the language model reads {found.vision_tokens} vision tokens per panorama",
        highlight=False,
    )
    if found.vocabulary is None:
        console.print(
            "the language model's vocabulary will be made of training texts that are not there "
            "yet; its embeddings are not counted",
            highlight=False,
        )


def _size(count: int) -> str:
    """Return a number of bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
