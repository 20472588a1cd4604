"""Whether stage vision has anything to learn: views that show something twice, and a loss of it."""

from __future__ import annotations

import math

from panovlm.config.schema import ImageProcessing, Settings
from panovlm.errors import ConfigError
from panovlm.models.resamplers import recipe as resampler_recipe
from panovlm.panorama.shots import View
from panovlm.panorama.sphere import SphereViews
from panovlm.training.stage import training_processes

LARGE = 1024
"""Pixels of the shorter side of views that are compared."""
OTHER_WAYS = "or leave vision out of training.stages."


def check_overlap(settings: Settings) -> None:
    """Refuse a stage vision that could not learn anything.

    Args:
        settings: an experiment with a stage vision.

    Raises:
        ConfigError: the overlap loss is switched off, there are no two views, the views that it
            compares show nothing in common, or nobody knows where the tokens lie.
    """
    models, image = settings.models, settings.image_processing
    loss = f"stage vision trains the overlap loss (models.overlap_loss: {models.overlap_loss}), but"
    if models.vicreg_loss_weight == 0:
        raise ConfigError(
            f"{loss} models.vicreg_loss_weight is 0, so that nothing would be trained; give it a "
            f"weight above 0, {OTHER_WAYS}"
        )
    sphere = SphereViews.of(_enlarged(image))
    numbers = [number for number, view in enumerate(sphere.views) if not view.is_global]
    chosen = f"image_processing.crop_strategy {image.crop_strategy}"
    if len(numbers) < 2:
        raise ConfigError(
            f"{loss} {chosen} gives no two views that could be compared; choose a strategy with "
            f"overlapping views, such as anyres_e2p, {OTHER_WAYS}"
        )
    if models.overlap_pairs == "columns":
        pairs = list(zip(numbers, (*numbers[1:], numbers[0]), strict=True))
        apart = next((pair for pair in pairs if not sphere.overlaps[pair]), None)
        if apart is not None:
            raise ConfigError(
                f"{loss} with {chosen} (fov_deg {image.fov_deg:g}, overlap_ratio "
                f"{image.overlap_ratio:g}) the neighbouring views {_named(sphere.views, apart)} "
                "show nothing in common; raise image_processing.overlap_ratio, choose a strategy "
                "whose views overlap, or set models.overlap_pairs: directions, which compares any "
                f"two views that do, {OTHER_WAYS}"
            )
        return
    if not any(sphere.overlaps[a, b] for a in numbers for b in numbers if a < b):
        raise ConfigError(
            f"{loss} no two views of {chosen} show anything in common; choose a strategy whose "
            f"views overlap, {OTHER_WAYS}"
        )
    architecture = resampler_recipe(models.resampler_type)
    if not architecture.keeps_tokens and "view" not in architecture.takes:
        raise ConfigError(
            f"models.overlap_pairs is directions, but the tokens of the resampler "
            f"{architecture.name} show no certain directions; set it to columns, or choose a "
            "resampler that keeps tokens in their places, such as mlp or bimamba."
        )


def check_batch(settings: Settings) -> None:
    """Refuse a loss that compares panoramas where a batch holds one only.

    Raises:
        ConfigError: it does.
    """
    batch = settings.training.stage_configs["vision"].batch_size
    if settings.models.overlap_loss != "dense_cl" or batch > 1:
        return
    if settings.models.overlap_gather is False or training_processes(settings) < 2:
        raise ConfigError(
            "models.overlap_loss dense_cl tells panoramas of a batch from each other, but "
            f"training.stage_configs.vision.batch_size is {batch}; use 2 or more."
        )


def _enlarged(image: ImageProcessing) -> ImageProcessing:
    """Return settings with such large views that the outer halves of their pixels do not count.

    Views of few pixels would overlap by these where their fields of view only touch.
    """
    if image.image_size is None:
        return image
    height, width = image.image_size
    factor = math.ceil(LARGE / min(height, width))
    return image.model_copy(update={"image_size": (height * factor, width * factor)})


def _named(views: tuple[View, ...], pair: tuple[int, int]) -> str:
    return " and ".join(
        f"{number} (yaw {views[number].yaw:g}, pitch {views[number].pitch:g})" for number in pair
    )
