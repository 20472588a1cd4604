"""The Q-Former resampler against plain formulas in float64, and its constants."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from panovlm.config.problems import ValidationError
from panovlm.errors import ConfigError
from panovlm.models.resamplers import recipe
from panovlm.models.resamplers.qformer.recipe import QFormerSettings

WIDTH, LATENT = 24, 5


def build(queries: int = 6, *, heads: int = 8, dropout: float = 0.0) -> torch.nn.Module:
    settings = QFormerSettings(
        num_query_tokens=queries, num_hidden_layers=2, num_attention_heads=heads, dropout=dropout
    )
    return recipe("qformer").build(settings, vision_dim=WIDTH, latent_dimension=LATENT)


def randomised(queries: int, heads: int = 8) -> torch.nn.Module:
    torch.manual_seed(0)
    module = build(queries, heads=heads).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


class Formula:
    """BERT decoder layers with cross-attention, written out."""

    def __init__(self, module: torch.nn.Module, heads: int) -> None:
        self.state = module.state_dict()
        self.heads = heads

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def attend(self, x: Tensor, memory: Tensor, name: str, *, causal: bool) -> Tensor:
        query, key, value = (
            self.linear(source, f"{name}.self.{part}").unflatten(-1, (self.heads, -1))
            for part, source in (("query", x), ("key", memory), ("value", memory))
        )
        scores = torch.einsum("bihc,bjhc->bhij", query, key) / math.sqrt(query.shape[-1])
        if causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        mixed = torch.einsum("bhij,bjhc->bihc", scores.softmax(-1), value).flatten(2)
        return self.norm(x + self.linear(mixed, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def __call__(self, tokens: Tensor, *, causal: bool = True) -> Tensor:
        queries = self.state["query"]
        table = "bert.embeddings."
        x = queries + self.state[f"{table}token_type_embeddings.weight"][0]
        x = x + self.state[f"{table}position_embeddings.weight"][: queries.shape[1]]
        x = self.norm(x, f"{table}LayerNorm").expand(len(tokens), -1, -1)
        for i in range(2):
            layer = f"bert.encoder.layer.{i}."
            x = self.attend(x, x, f"{layer}attention", causal=causal)
            x = self.attend(x, tokens, f"{layer}crossattention", causal=False)
            wide = self.linear(x, f"{layer}intermediate.dense")
            wide = 0.5 * wide * (1 + torch.erf(wide / math.sqrt(2)))
            x = self.norm(x + self.linear(wide, f"{layer}output.dense"), f"{layer}output.LayerNorm")
        return self.linear(x, "proj")


@pytest.mark.parametrize(("queries", "length"), [(6, 9), (6, 6), (6, 2), (1, 4)])
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_formulas(queries, length, training) -> None:
    module = randomised(queries).train(training)
    tokens = torch.randn(3, length, WIDTH, dtype=torch.float64)
    found = module(tokens)
    assert found.shape == (3, queries, LATENT)
    torch.testing.assert_close(found, Formula(module, 8)(tokens))


def test_queries_do_not_see_later_queries() -> None:
    module = randomised(6).eval()
    tokens = torch.randn(2, 9, WIDTH, dtype=torch.float64)
    found = module(tokens)
    other = Formula(module, 8)(tokens, causal=False)
    assert (found - other).abs().max() > 1e-2  # the two readings do differ here
    with torch.no_grad():
        module.query[:, 4, 0] += 1
    changed = (module(tokens) - found).abs().amax(dim=(0, 2)) > 1e-9
    assert changed.tolist() == [False, False, False, False, True, True]


@pytest.mark.parametrize("heads", [1, 4, 12])
def test_heads_are_those_of_the_settings(heads) -> None:
    module = randomised(3, heads=heads).eval()
    tokens = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(module(tokens), Formula(module, heads)(tokens))
    assert (module(tokens) - Formula(module, 2)(tokens)).abs().max() > 1e-3


def test_names_and_shapes_are_those_of_existing_checkpoints() -> None:
    shapes = {k: tuple(v.shape) for k, v in build().state_dict().items()}
    assert shapes["query"] == (1, 6, WIDTH)
    assert shapes["proj.weight"] == (LATENT, WIDTH)
    assert shapes["bert.embeddings.word_embeddings.weight"] == (30522, WIDTH)
    assert shapes["bert.embeddings.position_embeddings.weight"] == (512, WIDTH)
    assert shapes["bert.embeddings.token_type_embeddings.weight"] == (2, WIDTH)
    assert shapes["bert.encoder.layer.1.intermediate.dense.weight"] == (4 * WIDTH, WIDTH)
    assert shapes["bert.pooler.dense.weight"] == (WIDTH, WIDTH)
    leaves = {k.removeprefix("bert.encoder.layer.1.").rsplit(".", 1)[0] for k in shapes}
    for attention in ("attention", "crossattention"):
        assert {f"{attention}.self.{part}" for part in ("query", "key", "value")} <= leaves
        assert {f"{attention}.output.dense", f"{attention}.output.LayerNorm"} <= leaves
    assert len(shapes) == 1 + 2 + 5 + 2 + 2 * 26


def test_dropout_acts_in_training_only() -> None:
    module = build(dropout=0.3)
    tokens = torch.randn(2, 9, WIDTH)
    assert not torch.equal(module(tokens), module(tokens))
    module.eval()
    assert torch.equal(module(tokens), module(tokens))


def test_gradients_reach_all_but_the_unused_tables() -> None:
    module = build()
    module(torch.randn(2, 9, WIDTH)).square().sum().backward()
    idle = {name for name, p in module.named_parameters() if p.grad is None}
    assert idle == {
        "bert.embeddings.word_embeddings.weight",
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    }
    assert module.query.grad.any()


def test_a_build_on_meta_works_once_its_weights_are_assigned() -> None:
    real = build(3).eval()
    with torch.device("meta"):
        empty = build(3).eval()
    empty.load_state_dict(real.state_dict(), assign=True)
    assert not any(t.is_meta for t in (*empty.parameters(), *empty.buffers()))
    ours, theirs = dict(empty.named_buffers()), dict(real.named_buffers())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    tokens = torch.randn(2, 9, WIDTH)
    assert torch.equal(empty(tokens), real(tokens))
    assert empty.state_dict().keys() == real.state_dict().keys()


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match=r"num_attention_heads is 7, .* width 24"):
        build(heads=7)


def test_more_queries_than_positions_are_refused() -> None:
    with pytest.raises(ValidationError, match="num_query_tokens"):
        QFormerSettings(num_query_tokens=513)
