"""The grids that views get by pooling; no torch is imported here."""

from __future__ import annotations

from panovlm.errors import ConfigError
from panovlm.models.vision.grid import Grid, ViewGrid

LARGEST_SIDE = 64
"""Most rows, columns, or patches along a window."""


def divided_grid(view: ViewGrid, by: int, field: str) -> Grid:
    """Return the grid of square windows of patches.

    Args:
        view: the tokens of one view.
        by: patches along each side of a window.
        field: setting that says so, for the message.

    Raises:
        ConfigError: the windows do not fill the view.
    """
    if view.rows % by or view.columns % by:
        raise ConfigError(
            f"models.resampler_config.{field} is {by}, which does not divide a view of "
            f"{view.rows} × {view.columns} patches; choose a divisor of both, or a resampler that "
            "pools to a grid of any size (spatial_pool, c_abstractor)."
        )
    return view.rows // by, view.columns // by


def pooled_grid(grid: Grid, view: ViewGrid) -> Grid:
    """Return the grid that a view is pooled to.

    Raises:
        ConfigError: the view has fewer rows or columns, which pooling would only repeat.
    """
    if grid[0] > view.rows or grid[1] > view.columns:
        raise ConfigError(
            f"models.resampler_config asks for {grid[0]} rows and {grid[1]} columns of tokens, "
            f"but a view has {view.rows} × {view.columns} patches; ask for at most that many."
        )
    return grid
