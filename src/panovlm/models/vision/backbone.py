"""The vision tower and the LayerNorm on its output.

Only the vision half of a two-tower model (SigLIP, CLIP) is ever built or loaded, so that a tower's
tensors have the same names whichever repository it came from.
"""

from __future__ import annotations

import copy
from math import isqrt
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from panovlm.errors import ConfigError
from panovlm.models.sizes import UNUSABLE, possible_sizes
from panovlm.models.vision.grid import ViewGrid
from panovlm.models.vision.pretrained import no_model, vision_config, vision_part

WIDTH_FIELDS = ("hidden_size", "vision_hidden_size", "hidden_dim", "embed_dim", "projection_dim")
"""Fields of a tower's configuration that may give its width; the first present one counts."""
BLOCK_LISTS = ("encoder.layers", "encoder.layer", "model.layer", "layers", "layer", "blocks")
"""Where towers keep their transformer blocks."""
CLASS_TOKENS = ("class_embedding", "cls_token", "class_token")
"""Names of the parameter that towers put in front of the patches."""


class VisionBackbone(nn.Module):
    """A Hugging Face vision tower and the LayerNorm on its output.

    Attributes:
        config: configuration of the tower alone.
        encoder: the tower, under the names that transformers gives its tensors.
        norm: LayerNorm (eps 1e-5) on every token, or ``None``.

    Args:
        config: configuration of a tower, or of a two-tower model around one.
        use_norm: whether the last hidden state is normalised.
        encoder: ready-made tower to use; absent: one is built with random weights, in torch's
            default dtype and on its default device. On the meta device the tower's buffers
            (``position_ids`` of SigLIP and CLIP, which no checkpoint holds) lose their values;
            build under :func:`~panovlm.models.empty.without_weights` to keep them.

    Raises:
        ConfigError: transformers has no model for ``config``.
    """

    def __init__(
        self, config: PreTrainedConfig, *, use_norm: bool, encoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.config = vision_config(config)
        self._fields = self.config.to_dict()
        self.encoder = _build(self.config) if encoder is None else encoder
        self.norm = nn.LayerNorm(self.hidden_size, eps=1e-5) if use_norm else None

    @property
    def hidden_size(self) -> int:
        """Width Dv of the tokens.

        Raises:
            ConfigError: the configuration has none of the known fields.
        """
        for field in WIDTH_FIELDS:
            if self._fields.get(field) is not None:
                return int(self._fields[field])
        raise ConfigError(
            f"the configuration of vision tower {self.config.model_type!r} gives no width; "
            f"one of {', '.join(WIDTH_FIELDS)} was expected."
        )

    @property
    def image_size(self) -> tuple[int, int]:
        """The tower's own (height, width) in pixels.

        Raises:
            ConfigError: the configuration does not tell.
        """
        if self._fields.get("image_size") is not None:
            return _pair(self._fields["image_size"])
        if self._reads_patches:
            side = isqrt(self._fields["num_patches"]) * self._patch[0]
            return side, side
        raise ConfigError(
            f"the configuration of vision tower {self.config.model_type!r} gives no image_size; "
            "set image_processing.image_size."
        )

    @property
    def has_class_token(self) -> bool:
        """Whether the first of the S tokens is a class token instead of a patch."""
        names = (name.rpartition(".")[2] for name, _ in self.encoder.named_parameters())
        return any(name in CLASS_TOKENS for name in names)

    def view_grid(self, size: tuple[int, int], count: int) -> ViewGrid:
        """Return where the tokens of a view lie.

        Args:
            size: (height, width) of the view in pixels.
            count: tokens S that the tower makes of it; those that are no patches come first.

        Raises:
            ConfigError: the tower has no patches, or fewer tokens than patches.
        """
        if self._fields.get("patch_size") is None:
            raise ConfigError(
                f"the configuration of vision tower {self.config.model_type!r} gives no "
                "patch_size, so that nobody knows where its tokens lie; choose a resampler that "
                "does not need it, such as mlp, bimamba, qformer or perceiver."
            )
        rows, columns = _grid(size, self._patch)
        extra = count - rows * columns
        if not rows * columns or extra < 0:
            raise ConfigError(
                f"the vision tower ({self.config.model_type}) made {count} tokens of a view of "
                f"{size[0]}×{size[1]} pixels, which has {rows} × {columns} patches; choose a "
                "resampler that does not need their places, such as mlp, bimamba, qformer or "
                "perceiver."
            )
        return ViewGrid(rows, columns, extra)

    def read_share(self, size: tuple[int, int]) -> tuple[float, float]:
        """Return the parts of a view's height and width that are read.

        Pixels behind the last whole patch, at the right and lower edges, are not.

        Args:
            size: (height, width) of the view in pixels.
        """
        rows, columns = _grid(size, self._patch)
        return rows * self._patch[0] / size[0], columns * self._patch[1] / size[1]

    @property
    def _reads_patches(self) -> bool:
        """SigLIP 2 NaFlex reads flattened patches instead of pictures."""
        return self.config.model_type == "siglip2_vision_model"

    @property
    def _patch(self) -> tuple[int, int]:
        return _pair(self._fields["patch_size"])

    def blocks(self) -> nn.ModuleList:
        """Return the transformer blocks, first to last.

        Raises:
            ConfigError: the tower keeps them in an unknown place.
        """
        modules = dict(self.encoder.named_modules())
        for name in BLOCK_LISTS:
            found = modules.get(name)
            if isinstance(found, nn.ModuleList):
                return found
        raise ConfigError(
            f"the blocks of vision tower {self.config.model_type!r} were not found (looked for "
            f"{', '.join(BLOCK_LISTS)}); train all of it or none: vision_blocks: -1 or 0."
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode views.

        Args:
            pixels: normalised views ``[N, 3, h, w]``.

        Returns:
            ``[N, S, Dv]``: the tower's ``last_hidden_state``, a class token included, after
            ``norm`` if there is one.

        Raises:
            ConfigError: the tower cannot read pictures of this size.
        """
        self._check_size(pixels)
        inputs = self._as_patches(pixels) if self._reads_patches else {"pixel_values": pixels}
        tokens = cast(Tensor, self.encoder(**inputs).last_hidden_state)
        return tokens if self.norm is None else self.norm(tokens.to(self.norm.weight.dtype))

    def _check_size(self, pixels: Tensor) -> None:
        """Refuse pictures for which the tower has no position table."""
        size = (pixels.shape[-2], pixels.shape[-1])
        match self.config.model_type:
            case "clip_vision_model":
                fits = size == self.image_size
            case "siglip_vision_model":  # pixels beyond the last whole patch are not read
                fits = _grid(size, self._patch) == _grid(self.image_size, self._patch)
            case "siglip2_vision_model":
                fits = size[0] % self._patch[0] == 0 and size[1] % self._patch[1] == 0
            case _:
                fits = True
        if not fits and self._reads_patches:
            whole = [max(count, 1) for count in _grid(size, self._patch)]
            sides = [whole[0] * self._patch[0], whole[1] * self._patch[1]]
            raise ConfigError(
                f"the vision tower ({self.config.model_type}) reads views of any height and width "
                f"in whole patches of {self._patch[0]} pixels, but these have {size[0]}×{size[1]}. "
                f"Set image_processing.image_size to multiples, such as {sides}."
            )
        if not fits:
            own = self.image_size
            raise ConfigError(
                f"the vision tower ({self.config.model_type}) reads views of {own[0]}×{own[1]} "
                f"pixels, in patches of {self._patch[0]}, but these have {size[0]}×{size[1]}. Set "
                f"image_processing.image_size: [{own[0]}, {own[1]}]."
            )

    def _as_patches(self, pixels: Tensor) -> dict[str, Tensor | None]:
        """Return what NaFlex reads: flattened patches, row-major, channels last in each."""
        (height, width), count = self._patch, pixels.shape[0]
        rows, columns = _grid((pixels.shape[-2], pixels.shape[-1]), self._patch)
        tiled = pixels.unflatten(3, (columns, width)).unflatten(2, (rows, height))
        patches = tiled.permute(0, 2, 4, 3, 5, 1).reshape(count, rows * columns, -1)
        # On the CPU wherever the pixels are: transformers asks for these numbers view by view, for
        # which a GPU would be waited for each time. So it would be for a mask that hides nothing.
        shape = torch.tensor([[rows, columns]], device="cpu")
        return {
            "pixel_values": patches,
            "pixel_attention_mask": None,
            "spatial_shapes": shape.expand(count, -1),
        }


def _build(config: PreTrainedConfig) -> nn.Module:
    """Build a tower with random weights."""
    own = copy.deepcopy(config)  # from_config writes the dtype into it
    try:
        with possible_sizes():
            dtype = torch.get_default_dtype()
            model = AutoModel.from_config(own, dtype=dtype, trust_remote_code=False)
    except UNUSABLE as error:
        raise no_model(config, error) from error
    return vision_part(cast(PreTrainedModel, model))


def _pair(value: Any) -> tuple[int, int]:
    """Read one number as (height, width)."""
    if isinstance(value, list | tuple):
        height, width = cast(list[int], value)
        return height, width
    return value, value


def _grid(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Return the whole patches (rows, columns) of a picture."""
    return size[0] // patch[0], size[1] // patch[1]
