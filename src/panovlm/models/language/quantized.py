"""A frozen language model with its Linear layers rounded to four or eight bits, by bitsandbytes.

nf4 is the NormalFloat of QLoRA (Dettmers et al. 2023, arXiv:2305.14314), fp4 four-bit floating
point, both with one scale for 64 values; int8 has one scale for every row. Rounding is always done
on the CPU and from the weights in full precision, so that the same weights become the same bits on
every machine. These bits are in no checkpoint: what is stored, or left to a named model, are the
weights in full precision, of which rounding gives the same model again.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from panovlm.config.model_recipe import Quantization
from panovlm.errors import ConfigError, MissingDependencyError
from panovlm.models.language.adapters import ADAPTER_PARTS, strip_lora_name
from panovlm.models.samples import samples

OPTION = "models.language_quantization"
BLOCK = 64
"""Values that share a scale in four bits."""
BYTES: dict[Quantization, float] = {"int8": 1.0, "nf4": 0.5 + 4 / BLOCK, "fp4": 0.5 + 4 / BLOCK}
"""Memory of one weight, its part of the scales included (those of int8 rows do not count)."""


def quantize_linears(language_model: nn.Module, kind: Quantization) -> None:
    """Round the Linear layers of a language model, in place, and freeze it.

    The output layer, whatever shares its weight with the token embeddings, and adapters stay as
    they are; adapters are all that can be trained afterwards.

    Args:
        language_model: causal language model with its weights, with adapters or without.
        kind: how; not ``none``.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
        ConfigError: it has no Linear layers, or was rounded before.
    """
    require_library(kind)
    if next(quantized(language_model), None) is not None:
        raise ConfigError(f"the language model is quantised already; {OPTION} means its weights.")
    found = list(quantizable(language_model))
    if not found:
        raise ConfigError(
            f"{OPTION} is {kind!r}, but {type(language_model).__name__} has no Linear layers that "
            "could be quantised; set it to none."
        )
    for name, linear in found:
        _replace(language_model, name, QuantizedLinear(linear, kind))
    for name, parameter in language_model.named_parameters():
        if strip_lora_name(name).part not in ADAPTER_PARTS:
            parameter.requires_grad_(False)


def restore_linears(language_model: nn.Module) -> None:
    """Put Linear layers in place of rounded ones, in place, that compute the same.

    Their weights are in float32, in which no value is rounded once more.
    """
    for name, layer in list(quantized(language_model)):
        linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(layer.dequantized(torch.float32), requires_grad=False)
        linear.bias = layer.bias
        _replace(language_model, name, linear)


def quantizable(language_model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the layers that are rounded, by name in the language model as it is."""
    inner = cast(Any, language_model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    table = inner.get_input_embeddings().weight
    output = inner.get_output_embeddings()
    spared = set() if output is None else set(output.modules())
    for name, module in language_model.named_modules():
        adapter = strip_lora_name(f"{name}.weight").part in ADAPTER_PARTS
        if not isinstance(module, nn.Linear) or isinstance(module, QuantizedLinear) or adapter:
            continue
        if module not in spared and module.weight is not table:
            yield name, module


def quantized(model: nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    """Yield the layers that were rounded, by name."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            yield name, module


def require_library(kind: Quantization) -> None:
    """Refuse what cannot be computed here.

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            f"{OPTION} is {kind!r}, which needs the package bitsandbytes; install it with: "
            "pip install 'panovlm[quant]'. (With the setting none the language model is used as it "
            "was before quantisation, which is another model than the one that was trained.)"
        )


class QuantizedLinear(nn.Linear):
    """A Linear layer whose weight is kept in four or eight bits.

    The rounded weight is neither parameter nor buffer: nothing trains it, converts its type, sends
    it to other processes or writes it into a state dict. A bias stays as it is, frozen.

    Args:
        linear: the layer, on any device; left as it is.
        kind: how to round.

    Attributes:
        packed: the rounded weight as bitsandbytes packs it, uint8 ``[out * in / 2, 1]`` or int8
            ``[out, in]``.
        scales: float32, largest absolute value of each block of 64 values or of each row.
        stored: number type of the weight before.
        samples: a few values of the weight before, by which it is known again.
    """

    def __init__(self, linear: nn.Linear, kind: Quantization) -> None:
        nn.Module.__init__(self)  # a Linear would make a weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kind: Quantization = kind
        self.bias = linear.bias
        weight = linear.weight.detach()
        self.stored = weight.dtype
        self.samples = samples(weight).cpu()
        packed, scales = _rounded(weight.cpu(), kind)
        self.packed, self.scales = packed.to(weight.device), scales.to(weight.device)

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The rounded weight ``[out, in]`` in the type that it had before; made when asked for."""
        return self.dequantized(self.stored)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the rounded weight ``[out, in]`` as a tensor of ``dtype``."""
        if self.kind == "int8":
            return _rows(self.packed, self.scales, dtype)
        functional = _library().functional
        return functional.dequantize_4bit(self.packed, self._state(dtype)).to(dtype)

    def is_rounded_from(self, weight: Tensor) -> bool:
        """Tell whether a weight in full precision would be rounded to this one."""
        if weight.dtype != self.stored or weight.shape != (self.out_features, self.in_features):
            return False
        if not torch.equal(samples(weight).cpu(), self.samples):
            return False
        packed, scales = _rounded(weight.detach().cpu(), self.kind)
        return torch.equal(packed, self.packed.cpu()) and torch.equal(scales, self.scales.cpu())

    def forward(self, input: Tensor) -> Tensor:
        """Return ``x W^T + b`` of ``[..., in]``, in the type that a Linear would compute in."""
        device = input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        own = cast("nn.Parameter | None", self.bias)
        bias = None if own is None else own.to(input.dtype)
        if self.kind == "int8":
            return cast("Tensor", _RowProduct.apply(input, self.packed, self.scales, bias))
        state = self._state(input.dtype)
        return _library().matmul_4bit(input, self.packed, quant_state=state, bias=bias)

    def _state(self, dtype: torch.dtype) -> Any:
        """Return what bitsandbytes wants to know of a packed weight."""
        return _library().functional.QuantState(
            absmax=self.scales,
            shape=torch.Size((self.out_features, self.in_features)),
            blocksize=BLOCK,
            quant_type=self.kind,
            dtype=dtype,
        )

    def _apply(self, fn: Any, recurse: bool = True) -> QuantizedLinear:
        """Move with the model; a change of type is none of the rounded weight's business."""
        super()._apply(fn, recurse)
        self.packed = fn(self.packed)
        self.scales = self.scales.to(self.packed.device)
        return self


class _RowProduct(torch.autograd.Function):
    """``x W^T + b`` with W in eight bits, which alone is kept for the way back.

    The inputs are not rounded, as LLM.int8() (arXiv:2208.07339) rounds them: an answer would then
    depend on what else is computed with it, and training would see another model on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(packed, scales)
        return nn.functional.linear(inputs, _rows(packed, scales, inputs.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, None, None, None]:
        packed, scales = ctx.saved_tensors
        (gradient,) = grad_outputs
        return gradient @ _rows(packed, scales, gradient.dtype), None, None, None


def _rounded(weight: Tensor, kind: Quantization) -> tuple[Tensor, Tensor]:
    """Return a weight as bitsandbytes rounds and packs it, and its scales."""
    functional = _library().functional
    if kind == "int8":
        packed, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        return packed, scales
    packed, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type=kind)
    return packed, state.absmax


def _rows(packed: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return (packed * (scales / 127).unsqueeze(1)).to(dtype)


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


def _library() -> Any:
    """Return bitsandbytes, which is imported only where it is needed."""
    import bitsandbytes

    return bitsandbytes
