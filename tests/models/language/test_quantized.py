"""Linear layers in four and eight bits, against bitsandbytes' own layers and written formulas."""

from __future__ import annotations

import bitsandbytes as bnb
import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM

from panovlm.config.schema import LoRASettings
from panovlm.errors import ConfigError, MissingDependencyError
from panovlm.models.language.lora import attach_lora
from panovlm.models.language.quantized import (
    BLOCK,
    QuantizedLinear,
    quantizable,
    quantize_linears,
    quantized,
    restore_linears,
)

KINDS = ("int8", "nf4", "fp4")
FOUR = ("nf4", "fp4")


def linear(rows: int = 24, columns: int = 40, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(columns, rows, bias=bias)


def language_model(*, tied: bool = True) -> nn.Module:
    torch.manual_seed(4)
    config = AutoConfig.for_model(
        model_type="qwen2",
        vocab_size=30,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def theirs(own: nn.Linear, kind: str) -> nn.Module:
    """The layer that bitsandbytes makes of a Linear when that is moved to a device."""
    rows, columns = own.weight.shape
    if kind == "int8":
        layer = bnb.nn.Linear8bitLt(columns, rows, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(columns, rows, quant_type=kind, compress_statistics=False)
    layer.load_state_dict(own.state_dict())
    # In evaluation it computes in bfloat16 on processors that have it, whatever the inputs are.
    return layer.to("cpu").train(kind != "int8")


class TestAgainstBitsandbytes:
    @pytest.mark.parametrize("kind", FOUR)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_four_bits(self, kind: str, dtype: torch.dtype) -> None:
        own = linear().to(dtype)
        ours, other = QuantizedLinear(own, kind), theirs(own, kind)
        assert torch.equal(ours.packed, other.weight.data)
        assert torch.equal(ours.scales, other.weight.quant_state.absmax)
        inputs = torch.randn(2, 5, 40).to(dtype)
        assert_close(ours(inputs), other(inputs))
        assert ours(inputs).dtype == dtype

    def test_eight_bits(self) -> None:
        own = linear()
        ours, other = QuantizedLinear(own, "int8"), theirs(own, "int8")
        assert torch.equal(ours.packed, other.weight.CB)
        assert torch.equal(ours.scales, other.weight.SCB)
        inputs = torch.randn(2, 5, 40)
        # Theirs rounds the inputs to eight bits as well.
        apart = (ours(inputs) - other(inputs)).norm() / ours(inputs).norm()
        assert 0 < float(apart) < 0.02


def test_nf4_are_the_nearest_quantiles_of_the_normal_distribution() -> None:
    """The formula of the QLoRA paper, in float64."""
    offset = 0.9677083
    spread = lambda count: norm.ppf([offset + (0.5 - offset) * i / count for i in range(count)])  # noqa: E731
    codes = torch.tensor(sorted([*spread(8), 0.0, *-spread(7)]), dtype=torch.float64)
    codes /= codes.abs().max()
    own = linear(16, 128, bias=False)
    blocks = own.weight.detach().double().reshape(-1, BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = codes[(blocks[..., None] / largest[..., None] - codes).abs().argmin(-1)] * largest
    found = QuantizedLinear(own, "nf4").dequantized(torch.float32)
    assert_close(found.double().reshape(-1, BLOCK), nearest, rtol=0, atol=1e-6)


def test_int8_has_one_scale_per_row() -> None:
    own = linear()
    weight = own.weight.detach().double()
    scale = weight.abs().amax(1, keepdim=True) / 127
    found = QuantizedLinear(own, "int8").weight.double()
    assert (
        float(((found - weight).abs() / scale).max()) < 0.57
    )  # half, and the rounding of 127 to float16


@pytest.mark.parametrize("kind", KINDS)
class TestLayer:
    def test_gradient_reaches_the_input(self, kind: str) -> None:
        layer = QuantizedLinear(linear(), kind)
        inputs = torch.randn(2, 5, 40, requires_grad=True)
        outer = torch.randn(2, 5, 24)
        layer(inputs).backward(outer)
        assert_close(inputs.grad, outer @ layer.dequantized(torch.float32))

    def test_is_a_product_with_its_weight(self, kind: str) -> None:
        layer = QuantizedLinear(linear(), kind)
        inputs = torch.randn(3, 40)
        assert_close(layer(inputs), inputs @ layer.weight.T + layer.bias)

    def test_computes_in_the_type_of_autocast(self, kind: str) -> None:
        own = linear()
        layer, inputs = QuantizedLinear(own, kind), torch.randn(3, 40)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(inputs).dtype == own(inputs).dtype == torch.bfloat16

    def test_no_change_of_type_reaches_the_weight(self, kind: str) -> None:
        layer = QuantizedLinear(linear(), kind)
        before = layer.dequantized(torch.float32)
        layer.to(torch.bfloat16)
        assert layer.bias.dtype == torch.bfloat16 and layer.scales.dtype == torch.float32
        assert torch.equal(layer.dequantized(torch.float32), before)
        assert layer(torch.randn(3, 40, dtype=torch.bfloat16)).dtype == torch.bfloat16

    def test_moves_with_the_model(self, kind: str) -> None:
        layer = QuantizedLinear(linear(), kind).to("meta")
        assert layer.packed.is_meta and layer.scales.is_meta

    def test_is_known_by_its_weight(self, kind: str) -> None:
        own = linear()
        layer = QuantizedLinear(own, kind)
        assert layer.is_rounded_from(own.weight)
        assert not layer.is_rounded_from(own.weight.to(torch.bfloat16))
        other = own.weight.detach().clone()
        other[3, 5] += 0.5
        assert not layer.is_rounded_from(other)

    def test_keeps_its_weight_out_of_state_dicts(self, kind: str) -> None:
        layer = QuantizedLinear(linear(), kind)
        assert set(layer.state_dict()) == {"bias"}
        assert [name for name, _ in layer.named_parameters()] == ["bias"]
        assert list(layer.named_buffers()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_all_but_the_output_layer_is_rounded_and_frozen(kind: str) -> None:
    model = language_model(tied=False)
    count = sum(isinstance(m, nn.Linear) for m in model.modules())
    quantize_linears(model, kind)
    names = [name for name, _ in quantized(model)]
    assert len(names) == count - 1 == 14 and "lm_head" not in names
    assert not any(p.requires_grad for p in model.parameters())
    assert list(quantizable(model)) == []
    with pytest.raises(ConfigError, match="already"):
        quantize_linears(model, kind)


def test_a_tied_output_layer_stays() -> None:
    model = language_model(tied=True)
    quantize_linears(model, "nf4")
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("adapters_first", [False, True])
def test_adapters_train_upon_it(kind: str, dora: bool, adapters_first: bool) -> None:
    """They get the gradients that they get upon Linear layers of the rounded weights."""
    lora = LoRASettings(use_lora=True, rank=2, alpha=4, dropout=0, use_dora=dora)
    model = language_model()
    if adapters_first:
        model = attach_lora(model, lora)
        quantize_linears(model, kind)
    else:
        quantize_linears(model, kind)
        model = attach_lora(model, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    ids = torch.tensor([[3, 4, 5, 6]])
    model(input_ids=ids, labels=ids).loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found and all("lora_" in name for name in found)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(found)
    model.zero_grad()
    restore_linears(model)
    assert next(quantized(model), None) is None
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        if name in found:
            assert_close(parameter.grad, found[name], rtol=1e-4, atol=1e-6)


def test_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("panovlm.models.language.quantized.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'panovlm\[quant\]'"):
        quantize_linears(language_model(), "nf4")


def test_a_model_without_linear_layers() -> None:
    config = AutoConfig.for_model(model_type="gpt2", n_embd=16, n_layer=1, n_head=2, vocab_size=9)
    with pytest.raises(ConfigError, match="no Linear layers"):
        quantize_linears(AutoModelForCausalLM.from_config(config), "nf4")
