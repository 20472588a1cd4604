"""Sinusoidal positions of view tokens on the panorama's circle.

A token's place is its view and its column within the view, measured in views along the circle.
Because neighbouring views overlap, a view starts ``1 - overlap`` after the one before, so two
tokens that show the same direction get (nearly) the same position. The code of one number is the
sinusoidal one of Vaswani et al. 2017 (section 3.5), all sines first, then all cosines.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from panovlm.errors import ConfigError

Spatial = Literal["sinusoidal", "none"]
MAX_OVERLAP = 0.999
"""Larger overlaps would put all views on one spot."""


def sinusoids(
    position: npt.NDArray[np.float64], width: int, temperature: float
) -> npt.NDArray[np.float64]:
    """Return the sinusoidal code of numbers.

    Args:
        position: any shape ``[...]``.
        width: channels D. The frequencies are ``temperature ** (-2i / D)``, ``i < D // 2``.
        temperature: base of the frequencies, above 1.

    Returns:
        ``[..., D]``: sines of every frequency, then cosines, then a zero if D is odd.
    """
    half = width // 2
    frequencies = float(temperature) ** (-2.0 * np.arange(half) / width)
    angles = position[..., None] * frequencies
    code = np.zeros((*position.shape, width))
    code[..., :half] = np.sin(angles)
    code[..., half : 2 * half] = np.cos(angles)
    return code


def panorama_positions(
    *,
    num_views: int,
    grid: tuple[int, int],
    width: int,
    overlap: float,
    temperature: float,
    continuity: bool,
    spatial: Spatial,
) -> npt.NDArray[np.float64]:
    """Return the positions that are added to the tokens of all views.

    With step ``s = 1 - overlap`` and length ``L = V - (V - 1)·overlap`` (continuity off: 1 and V),
    column x of view v lies at ``g = v·s + x / columns``, an angle of ``2π·g / L``. Its code is
    added to those of the row and of ``g`` itself (spatial off: angle only).

    Args:
        num_views: views V around the circle, in order.
        grid: (rows, columns) of one view.
        width: channels D.
        overlap: shared fraction of neighbouring views, 0 to 1; at most 0.999 is used.
        temperature: base of the frequencies.
        continuity: whether positions follow the overlap or count views.
        spatial: ``"none"`` leaves the codes of row and ``g`` out.

    Returns:
        ``[V, rows · columns, D]``, float64.
    """
    rows, columns = grid
    shared = min(max(overlap, 0.0), MAX_OVERLAP) if continuity else 0.0
    length = num_views - (num_views - 1) * shared
    view = np.arange(num_views, dtype=np.float64)[:, None]
    place = view * (1 - shared) + np.arange(columns) / columns  # [V, columns]
    code = sinusoids(2 * np.pi * place / length, width, temperature)
    if spatial == "sinusoidal":
        code = code + sinusoids(place, width, temperature)
    table = np.repeat(code[:, None], rows, axis=1)  # [V, rows, columns, D]
    if spatial == "sinusoidal":
        table += sinusoids(np.arange(rows, dtype=np.float64), width, temperature)[:, None]
    return table.reshape(num_views, rows * columns, width)


def direction_positions(
    directions: npt.NDArray[np.float64], width: int, highest: float
) -> npt.NDArray[np.float64]:
    """Return the Fourier features of directions on the sphere.

    Each of the three coordinates, -1 to 1, has sines and cosines of ``width // 6`` frequencies in
    geometric steps, from half a period over the whole sphere to ``highest`` periods. The slowest
    ones alone tell all directions apart, and near directions have near codes everywhere, at the
    seam and at the poles too.

    Args:
        directions: unit vectors ``[..., 3]``.
        width: channels D, at least 6.
        highest: periods of the fastest feature from one end of the sphere to the other.

    Returns:
        ``[..., D]``, float64: all sines (x, y, z), all cosines, then zeros.

    Raises:
        ConfigError: there are fewer than six channels.
    """
    bands = width // 6
    if bands == 0:
        raise ConfigError(
            f"models.latent_dimension is {width}, but models.pe_type directions needs at least 6 "
            "channels."
        )
    periods = np.geomspace(0.5, highest, bands) if bands > 1 else np.array([0.5])
    angles = np.pi * directions[..., None] * periods  # [..., 3, bands]
    flat = angles.reshape(*directions.shape[:-1], 3 * bands)
    code = np.zeros((*directions.shape[:-1], width))
    code[..., : 3 * bands] = np.sin(flat)
    code[..., 3 * bands : 6 * bands] = np.cos(flat)
    return code


@lru_cache(maxsize=16)
def cached_positions(
    *,
    num_views: int,
    grid: tuple[int, int],
    width: int,
    overlap: float,
    temperature: float,
    continuity: bool,
    spatial: Spatial,
    device: torch.device,
) -> Tensor:
    """Return :func:`panorama_positions` as float32 on ``device``; do not modify it."""
    table = panorama_positions(
        num_views=num_views,
        grid=grid,
        width=width,
        overlap=overlap,
        temperature=temperature,
        continuity=continuity,
        spatial=spatial,
    )
    # A tensor made in inference mode could never take part in training later.
    with torch.inference_mode(mode=False):
        return torch.from_numpy(table.astype(np.float32)).to(device)
