"""``panovlm ask``: ask questions about a panorama."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from panovlm.checkpoint.report.describe import remarks
from panovlm.cli.options import (
    add_attention_option,
    add_device_options,
    add_input_option,
    add_loading_options,
    add_probe_option,
    device,
    dtype,
    image_input,
    overrides,
)
from panovlm.cli.quiet import quiet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("checkpoint", type=Path, help="checkpoint file or run folder")
    parser.add_argument("panorama", type=Path, help="equirectangular image")
    parser.add_argument("questions", nargs="+", metavar="QUESTION")
    add_input_option(parser)
    add_loading_options(parser)
    add_device_options(parser)
    add_probe_option(parser)
    add_attention_option(parser)


def run(options: argparse.Namespace) -> int:
    """Print the answers."""
    quiet()
    from panovlm.config.image_input import PLAIN
    from panovlm.evaluation.run import generation_arguments
    from panovlm.models.attention import use_attention
    from panovlm.models.model import PanoramaVLM
    from panovlm.panorama.image import check_panorama, read_panorama
    from panovlm.panorama.picture import Picture
    from panovlm.panorama.pipeline import ViewPipeline

    picture = Picture(options.panorama, image_input(options) or PLAIN)
    check_panorama(picture)
    model = PanoramaVLM.from_checkpoint(
        options.checkpoint,
        device=device(options.device),
        dtype=dtype(options.dtype),
        prefer=options.prefer,
        strict=options.strict,
        overrides=overrides(options.set),
        weights=options.weights,
        probe=options.probe,
    )
    use_attention(model, options.attn_implementation)
    assert model.resolution is not None
    for line in remarks(model.resolution):
        print(line, file=sys.stderr)
    pipeline = ViewPipeline(model.recipe.image_processing)
    panorama = read_panorama(picture, pipeline.reduction)
    arguments = generation_arguments(model.recipe.generation)
    print(*model.answers(panorama, options.questions, **arguments), sep="\n")
    return 0
