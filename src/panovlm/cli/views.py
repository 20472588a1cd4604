"""``panovlm views``: draw what the model sees of a panorama."""

from __future__ import annotations

import argparse
from pathlib import Path

from panovlm.cli.options import overrides
from panovlm.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("panorama", type=Path, help="equirectangular image")
    parser.add_argument("-o", "--output", type=Path, default=Path("views.png"))
    parser.add_argument("--checkpoint", type=Path, help="take the settings of this checkpoint")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a setting of image_processing, such as crop_strategy=e2p or image_size=256",
    )
    parser.add_argument("--weights", choices=("model", "ema"), help="which copy of its weights")


def run(options: argparse.Namespace) -> int:
    """Draw the contact sheet."""
    from panovlm.panorama.image import read_panorama
    from panovlm.panorama.sheet import contact_sheet

    settings = _settings(options)
    sheet = contact_sheet(read_panorama(options.panorama), settings)
    try:
        sheet.save(options.output)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {options.output}: {error}") from error
    print(f"{options.output}: {sheet.width}×{sheet.height}, {settings.crop_strategy}")
    return 0


def _settings(options: argparse.Namespace):
    """Return the image processing of the checkpoint, or today's defaults, with overrides."""
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
    return validate(ImageProcessing, {"image_size": 256, **values}, Lines("--set"))
