"""``panovlm views``: draw what the model sees of a panorama, and count it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from panovlm.cli.options import add_input_option, image_input, overrides
from panovlm.errors import ConfigError

if TYPE_CHECKING:
    from panovlm.config.image_input import ImageInput
    from panovlm.config.schema import ImageProcessing, Settings

NOMINAL = 256
"""Pixels of a view where neither an experiment nor a checkpoint says."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("panorama", type=Path, nargs="?", help="equirectangular image to draw")
    add_input_option(parser)
    parser.add_argument("-o", "--output", type=Path, default=Path("views.png"))
    parser.add_argument("--stats", action="store_true", help="coverage and density on the sphere")
    parser.add_argument(
        "--tokens", action="store_true", help="vision tokens of an experiment (--config)"
    )
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--checkpoint", type=Path, help="take the settings of this checkpoint")
    given.add_argument("-c", "--config", type=Path, help="take the settings of this experiment")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a setting of image_processing, such as crop_strategy=e2p or image_size=256",
    )
    parser.add_argument("--weights", choices=("model", "ema"), help="which copy of its weights")


def run(options: argparse.Namespace) -> int:
    """Draw the contact sheet, and say what is asked for."""
    if options.panorama is None and not (options.stats or options.tokens):
        raise ConfigError("nothing to do: give a panorama to draw, --stats, or --tokens.")
    if options.tokens and options.config is None:
        raise ConfigError("--tokens counts those of an experiment; name it with --config FILE.")
    settings = _settings(options)
    if options.panorama is not None:
        _draw(options, settings)
    if options.stats:
        from panovlm.panorama.coverage import coverage, lines

        print(f"{settings.crop_strategy}:", *lines(coverage(settings)), sep="\n  ")
    if options.tokens:
        _print_tokens(options)
    return 0


def _draw(options: argparse.Namespace, settings: ImageProcessing) -> None:
    """Write the contact sheet."""
    from panovlm.config.image_input import PLAIN
    from panovlm.panorama.image import read_panorama
    from panovlm.panorama.picture import Picture
    from panovlm.panorama.sheet import contact_sheet

    picture = Picture(options.panorama, _declared(options) or PLAIN)
    sheet = contact_sheet(read_panorama(picture), settings)
    try:
        sheet.save(options.output)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {options.output}: {error}") from error
    print(f"{options.output}: {sheet.width}×{sheet.height}, {settings.crop_strategy}")


def _declared(options: argparse.Namespace) -> ImageInput | None:
    """Return how the picture shows the sphere: as --input says, else as the experiment does."""
    if options.input or options.config is None:
        return image_input(options)
    return _experiment(options).data.input


def _print_tokens(options: argparse.Namespace) -> None:
    """Print the vision tokens of an experiment; it is built without weights."""
    from panovlm.cli.quiet import quiet

    quiet()
    from panovlm.training.dry_run import plan

    found = plan(_experiment(options), ())
    before, after = found.tokens_per_view
    print(
        f"{found.views} views of {before} tokens, {after} after the resampler; the language model "
        f"reads {found.vision_tokens}"
    )


def _experiment(options: argparse.Namespace) -> Settings:
    """Return the experiment's settings with overrides."""
    from panovlm.config.load import load_settings

    return load_settings(
        options.config,
        [
            pair if "." in pair.partition("=")[0] else f"image_processing.{pair}"
            for pair in options.set
        ],
    )


def _settings(options: argparse.Namespace) -> ImageProcessing:
    """Return the image processing of the checkpoint, or today's defaults, with overrides."""
    if options.config is not None:
        found = _experiment(options).image_processing
        size = {} if found.image_size else {"image_size": NOMINAL}
        return found.model_copy(update=size)
    from panovlm.config.load import Lines, apply_recipe_overrides
    from panovlm.config.schema import ImageProcessing
    from panovlm.config.validation import validate

    given = {
        name if "." in name else f"image_processing.{name}": value
        for name, value in overrides(options.set).items()
    }
    if options.checkpoint is not None:
        from panovlm.checkpoint.resolve import resolve

        found = resolve(options.checkpoint, given, weights=options.weights)
        return found.config.image_processing
    flat = apply_recipe_overrides(given, "mlp")
    values = {name.removeprefix("image_processing."): value for name, value in flat.items()}
    return validate(ImageProcessing, {"image_size": NOMINAL, **values}, Lines("--set"))
