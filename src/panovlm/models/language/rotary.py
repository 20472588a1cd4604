r"""Rotary positions on the closed loop of a panorama (``models.vision_rope: closed_yaw``).

A language model turns channel pair k of a token at position p by ``w_k p``. A row of the panorama
is a stretch of that line, so that its two ends, which touch, are the furthest apart. The variant
here bends every row into a ring. The vision token that stands b places behind the beginning of its
row, at yaw ``2 pi u``, is turned by

    w_k (p - b) + 2 pi m_k u,    m_k = round(w_k C / (2 pi)),

where C is the number of tokens of a whole turn: instead of ``w_k`` per token, the nearest frequency
that has a whole number of periods on the loop. Between tokens of a row only the difference of yaw
counts, whichever way round; rows stay as far apart as they were, and text is turned as ever.
Turning the panorama by a step of its views permutes the vision tokens over places that stay the
same.

The name and the formula are PanoVLM's own. PanoRoPE of the CORA system shares the aim but not the
formula: it adds the columns that lie between a view and the first one to the positions of the view,
and its line stays open. Snapping frequencies to whole numbers of periods is known from panorama
generation (Circular RoPE of SHERPA, arXiv:2606.12213), on an axis of its own there.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from panovlm.errors import ConfigError
from panovlm.models.vision.loop import LoopPlaces

BITS = 32
"""Position ids carry the number of a vision token, from 1, in the bits from here on. So they say by
themselves which tokens are turned, in whatever pieces a sequence is computed."""
POSITION = (1 << BITS) - 1
BUFFER = "inv_freq"
TURN = 2 * torch.pi


class VisionRope:
    """Turns the vision tokens of a language model by their yaw.

    Args:
        language_model: its rotary embeddings are observed from now on; positions that carry no
            number of a vision token are embedded as before.

    Raises:
        ConfigError: it has no rotary embeddings of one axis in the usual layout.
    """

    def __init__(self, language_model: nn.Module) -> None:
        self._known: dict[int, LoopPlaces] = {}
        self._places: LoopPlaces | None = None
        self._numbers: Tensor | None = None
        modules = [module for module in language_model.modules() if _kinds(module)]
        if not modules:
            raise ConfigError(
                f"models.vision_rope is closed_yaw, but {type(language_model).__name__} has no "
                "rotary positions; set it to sequence."
            )
        self._unchecked = list(modules)
        for module in modules:
            self._check_once(module)
            module.register_forward_pre_hook(self._take_numbers, with_kwargs=True)
            module.register_forward_hook(self._turn, with_kwargs=True)

    def know(self, places: LoopPlaces) -> None:
        """Remember where vision tokens of that number lie."""
        self._known[places.count] = places

    @contextmanager
    def instead(self, places: LoopPlaces) -> Generator[None]:
        """Take other places for tokens of that number within."""
        known = self._known
        self._known = {**known, places.count: places}
        try:
            yield
        finally:
            self._known = known

    def positions(self, base: Tensor, numbers: Tensor, count: int) -> Tensor:
        """Return position ids that carry the numbers of the vision tokens.

        Args:
            base: ordinary positions, int64 ``[B, L]``.
            numbers: 1 to T at vision tokens, else 0, ``[B, L]``.
            count: vision tokens T of a row.

        Raises:
            ConfigError: nobody knows where they lie.
        """
        if count == 0:
            return base
        if count not in self._known:
            raise ConfigError(
                f"models.vision_rope is closed_yaw, but where {count} vision tokens lie is not "
                "known; make them with vision_tokens() of this model."
            )
        self._places = self._known[count]
        return base | ((numbers - self._places.front).clamp(min=0) << BITS)

    def _check_once(self, module: nn.Module) -> None:
        """Check a rotary embedding as soon as its frequencies have values."""
        ready = not any(buffer.is_meta for buffer in module.buffers(recurse=False))
        if ready and any(module is one for one in self._unchecked):
            _check(module)
            self._unchecked = [one for one in self._unchecked if one is not module]

    def _take_numbers(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take the numbers of vision tokens off the positions."""
        ids: Tensor = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
        self._numbers = ids >> BITS
        ids = ids & POSITION
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": ids}
        return (args[0], ids, *args[2:]), kwargs

    def _turn(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Replace the cosines and sines of the vision tokens."""
        numbers, places = self._numbers, self._places
        if numbers is None or places is None or not bool(numbers.any()):
            return output
        cos, sin = cast("tuple[Tensor, Tensor]", output)
        self._check_once(module)
        kinds = _kinds(module)
        kind = kinds[0] if len(kinds) == 1 else kwargs.get("layer_type", args[-1])
        frequencies, scale = _frequencies(module, kind)
        ids: Tensor = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
        own = (numbers - 1).clamp(min=0)
        back = torch.from_numpy(places.back).to(own.device)[own]
        turn = torch.from_numpy(places.turn).to(own.device, torch.float32)[own]
        whole = (frequencies * places.columns / TURN).round()
        angles = (ids - back)[..., None] * frequencies + TURN * (turn[..., None] * whole % 1)
        angles = torch.cat((angles, angles), dim=-1)
        placed = (numbers > 0)[..., None]
        return (
            torch.where(placed, (angles.cos() * scale).to(cos.dtype), cos),
            torch.where(placed, (angles.sin() * scale).to(sin.dtype), sin),
        )


def _kinds(module: nn.Module) -> list[str]:
    """Return the kinds of layers that a rotary embedding has frequencies for (``""``: any)."""
    names = [name for name, _ in module.named_buffers(recurse=False)]
    return [
        name.removesuffix(BUFFER).removesuffix("_")
        for name in names
        if name.endswith(BUFFER) and not name.endswith(f"original_{BUFFER}")
    ]


def _frequencies(module: nn.Module, kind: str) -> tuple[Tensor, float]:
    """Return the frequencies ``[channels / 2]`` and the factor of cosines and sines."""
    prefix = f"{kind}_" if kind else ""
    return getattr(module, prefix + BUFFER).float(), getattr(module, f"{prefix}attention_scaling")


def _check(module: nn.Module) -> None:
    """Refuse a rotary embedding whose channels are not laid out as expected.

    Raises:
        ConfigError: it is.
    """
    for kind in _kinds(module):
        frequencies, scale = _frequencies(module, kind)
        ids = torch.tensor([[3]], device=frequencies.device)
        given = (torch.zeros_like(frequencies[:1]), ids, *([kind] if kind else []))
        try:
            cos, _ = module.forward(*given)
        except (TypeError, IndexError, RuntimeError) as error:
            raise _unusual(module) from error
        expected = torch.cat((3 * frequencies, 3 * frequencies)).cos() * scale
        if cos.shape != (1, 1, len(expected)) or not torch.allclose(cos[0, 0], expected, atol=1e-5):
            raise _unusual(module)


def _unusual(module: nn.Module) -> ConfigError:
    return ConfigError(
        f"models.vision_rope is closed_yaw, but the rotary positions of {type(module).__name__} "
        "are laid out in another way than those it knows; set it to sequence."
    )
