"""A probe changes nothing about the model it is taken of, and is the same wherever it is taken."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from panovlm.checkpoint.probe.compare import compare, distance
from panovlm.checkpoint.probe.measure import (
    is_sharded,
    measure_part,
    precisions,
    samples,
    take_probe,
)
from panovlm.checkpoint.probe.patterns import noise, sketch
from panovlm.checkpoint.probe.record import Probe, coarsest

BIMAMBA = {
    "resampler_type": "bimamba",
    "resampler_config": {"hidden_dim": 32, "depth": 2, "d_state": 4, "dropout": 0.5},
    "pe_dropout": 0.5,
}


@pytest.fixture
def model(own):
    return own(**BIMAMBA)


def same(one: Probe, other: Probe) -> bool:
    parts = (compare(p, m, other.parts[p], stored="float32") for p, m in one.parts.items())
    return not any(parts) and (one.views, one.prompt) == (other.views, other.prompt)


def test_the_numbers_are_those_of_the_parts(model):
    """Against the parts themselves, run by hand."""
    found = take_probe(model)
    inputs = found.inputs
    assert inputs.views == 9 and inputs.pixels == (16, 16)
    with torch.no_grad():
        tokens = torch.from_numpy(noise(1, inputs.tokens, 64))
        resampled = model.resampler_module(tokens)
        strip = model.projector(torch.from_numpy(noise(9, inputs.resampled, 40)), 9)
        vision = torch.from_numpy(noise(1, 8, 24))
        text = model.get_input_embeddings()(torch.tensor([inputs.text_ids]))
        logits = model.language_model(inputs_embeds=torch.cat((vision, text), 1)).logits
    for part, output in (
        ("resampler", resampled),
        ("projector", strip),
        ("language", logits[0, -1]),
    ):
        expected = sketch(output.double().numpy())
        assert distance(found.parts[part].sketches["output"], expected) < 1e-6


def test_norms_answer_a_faint_input(model):
    """Against the formula: only there does eps count."""
    eps, sizes = model.config.text_config.rms_norm_eps, []
    for module in model.language_model.modules():
        if type(module).__name__ == "Qwen3RMSNorm":
            weight = module.weight.detach().double().numpy()
            faint = noise(1, len(weight)).astype(np.float64) * 1e-3
            answer = weight * faint / np.sqrt(np.mean(faint**2) + eps)
            sizes.append(np.sqrt(np.mean(answer**2)))
    assert len(sizes) == 9  # two per layer, two of a layer's attention, one at the end
    found = take_probe(model).parts["language"].sketches["norms"]
    assert distance(found, sketch(np.sort(sizes))) < 1e-6
    assert distance(found, sketch(np.sort(sizes) * np.sqrt(2))) > 0.2


def test_nothing_is_disturbed(model):
    model.train()
    model.vision_backbone.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    trained, again = take_probe(model), take_probe(model)
    assert torch.equal(torch.rand(4), expected)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(weights[name], t) for name, t in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert same(trained, take_probe(model.eval())) and trained == again


def test_modes_are_put_back_after_an_error(model):
    model.train()
    broken = take_probe(model).inputs.model_copy(update={"text_ids": (10**6,)})
    with pytest.raises(IndexError):
        measure_part(model, "language", broken)
    assert all(module.training for module in model.modules())
    model.eval()


def test_gradients_can_flow_afterwards(model):
    take_probe(model)
    ids = torch.tensor([[1, 2, 3]])
    model.train()(torch.randn(1, 9, 3, 16, 16), ids, labels=ids).loss.backward()
    assert model.projector.linear.weight.grad is not None
    model.zero_grad()
    model.eval()


SCRIPT = """
import sys, torch
from panovlm.models.model import PanoramaVLM
from panovlm.checkpoint.probe.measure import take_probe
torch.set_num_threads(int(sys.argv[2]))
print(take_probe(PanoramaVLM.from_checkpoint(sys.argv[1], probe=False)).to_json())
"""


def test_another_process_with_more_threads(originals):
    path = originals(**BIMAMBA)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), "2"], capture_output=True, text=True, check=True
    )
    theirs = Probe.model_validate(json.loads(done.stdout))
    ours = torch.load(path, weights_only=True)["panovlm_probe"]
    assert same(Probe.model_validate(json.loads(ours)), theirs)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads, model):
    before = torch.get_num_threads()
    expected = take_probe(model)
    torch.set_num_threads(threads)
    try:
        assert same(expected, take_probe(model))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_another_way_to_attend(implementation, model, recwarn):
    expected = take_probe(model)
    model.language_model.set_attn_implementation(implementation)
    model.vision_backbone.encoder.set_attn_implementation(implementation)
    assert same(expected, take_probe(model))
    model.language_model.set_attn_implementation("sdpa")
    model.vision_backbone.encoder.set_attn_implementation("sdpa")


def test_a_model_without_tokenizer(own):
    model = own(vicreg_gamma=0.5)  # an object of its own
    whole = take_probe(model)
    model.tokenizer = None
    found = take_probe(model)
    assert found.prompt == {} and found.parts == whole.parts


def test_text_avoids_the_placeholder(model):
    assert model.config.vision_token_id not in take_probe(model).inputs.text_ids


def test_number_types(model):
    assert set(precisions(model).values()) == {"float32"}
    assert coarsest(["float64", "bfloat16", "float32"]) == "bfloat16"
    assert coarsest(["float8_e4m3fn", "float16"]) == "float8_e4m3fn"


def test_samples():
    assert samples(torch.arange(10.0).reshape(2, 5)).tolist() == [0, 3, 6, 9]
    assert samples(torch.tensor(7.0)).tolist() == [7, 7, 7, 7]
    assert samples(torch.arange(2.0)).tolist() == [0, 0, 0, 1]


def test_sharded_weights_are_not_probed(model, monkeypatch):
    """No single process could run them."""

    class FullyShardedDataParallel(nn.Linear):
        """Told by its name: importing torch's takes a while."""

    assert not is_sharded(model)
    monkeypatch.setattr(model.projector, "linear", FullyShardedDataParallel(40, 24))
    assert is_sharded(model) and take_probe(model) is None
