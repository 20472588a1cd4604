"""What the names and shapes of a language model's weights tell about it and its adapters.

The families Qwen2, Qwen3, Llama and Gemma share one layout and differ in biases and norms. No torch
is needed here.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from panovlm.checkpoint.settle.shapes import Observations, Shapes
from panovlm.errors import CheckpointError, ContradictionError
from panovlm.models.language.adapters import LoRAName, infer_lora, strip_lora_name
from panovlm.models.language.released import Sizes, assume

__all__ = [
    "FAMILIES",
    "Family",
    "LanguageInference",
    "LoRAName",
    "infer_language",
    "infer_lora",
    "strip_lora_name",
]

_LAYERS = "model.layers."
_FIRST = _LAYERS + "0."
_TABLE = "model.embed_tokens.weight"
_COMMON = frozenset(
    {
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        *(f"self_attn.{part}_proj.weight" for part in "qkvo"),
        *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }
)
_ATTENTION_BIAS = frozenset(f"self_attn.{part}_proj.bias" for part in "qkvo")
_QUERY_NORM = frozenset({"self_attn.q_norm.weight", "self_attn.k_norm.weight"})
_SANDWICH = frozenset({"pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"})
"""Norms around the MLP that Gemma has from its second version on."""
_MLP_BIAS = frozenset(f"mlp.{part}_proj.bias" for part in ("gate", "up", "down"))


@dataclass(frozen=True)
class Family:
    """The tensors of a decoder layer: common ones, own ones, and whole optional groups."""

    model_type: str
    own: frozenset[str]
    """Tensors that every layer of this family has besides the common ones."""
    options: tuple[tuple[str, frozenset[str]], ...]
    """Configuration fields that switch a group of tensors on, each with its group."""
    certain: bool
    """Whether the names belong to this family alone."""

    def differences(self, layer: frozenset[str]) -> list[str]:
        """Return why a layer with these tensors is not of this family (empty: it is)."""
        foreign = layer - _COMMON - self.own
        for _, group in self.options:
            if group <= foreign:
                foreign -= group
        absent = (_COMMON | self.own) - layer
        return [f"{name} is absent" for name in sorted(absent)] + [
            f"{name} is foreign" for name in sorted(foreign)
        ]


FAMILIES = (
    Family(
        "qwen2",
        own=frozenset(f"self_attn.{part}_proj.bias" for part in "qkv"),
        options=(),
        certain=True,
    ),
    Family(
        "qwen3",
        own=_QUERY_NORM,
        options=(("attention_bias", _ATTENTION_BIAS),),
        certain=True,
    ),
    Family("gemma2", own=_SANDWICH, options=(), certain=True),
    Family("gemma3_text", own=_SANDWICH | _QUERY_NORM, options=(), certain=True),
    # Mistral, the first Gemma, Granite and SmolLM3 have the names of Llama.
    Family(
        "llama",
        own=frozenset(),
        options=(("attention_bias", _ATTENTION_BIAS), ("mlp_bias", _MLP_BIAS)),
        certain=False,
    ),
)
"""The families that are recognised; no layer belongs to two of them."""


@dataclass(frozen=True)
class LanguageInference:
    """What the weights of a language model tell about its configuration."""

    family: str
    """One of :data:`FAMILIES`."""
    observed: Observations
    """Configuration fields that the shapes show."""
    assumed: dict[str, Any]
    """Fields that they do not show, see :func:`~panovlm.models.language.released.assume`."""
    candidates: tuple[str, ...]
    """Released models that have these sizes; the fields of the first one are assumed."""
    disputed: tuple[str, ...]
    """Assumed fields in which the candidates differ."""

    def config(self) -> dict[str, Any]:
        """Return the whole configuration, as ``AutoConfig.for_model(**config)`` takes it."""
        return {**self.assumed, **{field: seen.value for field, seen in self.observed.items()}}


def infer_language(shapes: Shapes) -> LanguageInference:
    """Read the configuration of a language model off its weights.

    Observed are ``vocab_size``, ``hidden_size``, ``intermediate_size``, ``num_hidden_layers`` and
    the bias switches; ``model_type``, except for Llama, whose names other families share; where
    there is a query norm, which is as wide as a head, also ``head_dim`` and both head counts;
    ``tie_word_embeddings`` where there is no ``lm_head``. A stored ``lm_head`` may repeat a tied
    table, so it is assumed to be a layer of its own, which computes the same in either case.

    Args:
        shapes: names below ``language_model.``, canonical as :func:`strip_lora_name` gives them,
            without the adapters.

    Raises:
        CheckpointError: no known family has these names.
        ContradictionError: the tensors do not fit together.
    """
    family = _recognise(shapes)
    observed = Observations(shapes)
    if family.certain:
        for name in sorted(family.own):
            shapes.has(_FIRST + name)
        observed.add("model_type", family.model_type)
    observed.add("vocab_size", shapes.dim(_TABLE, 0))
    observed.add("hidden_size", shapes.dim(_TABLE, 1))
    observed.add("intermediate_size", shapes.dim(f"{_FIRST}mlp.gate_proj.weight", 0))
    observed.add("num_hidden_layers", shapes.count("model.layers"))
    for field, group in family.options:
        observed.add(field, shapes.has(_FIRST + min(group)))
    if family.own >= _QUERY_NORM:
        _observe_heads(shapes, observed)
    if not shapes.has("lm_head.weight"):
        observed.add("tie_word_embeddings", True)
    shapes.take_reads()

    sizes = Sizes(
        family.model_type,
        observed["hidden_size"].value,
        observed["intermediate_size"].value,
        observed["num_hidden_layers"].value,
        query_rows=shapes.dim(f"{_FIRST}self_attn.q_proj.weight", 0),
        key_rows=shapes.dim(f"{_FIRST}self_attn.k_proj.weight", 0),
    )
    guess = assume(sizes)
    guesses = {"model_type": family.model_type, "tie_word_embeddings": False, **guess.fields}
    assumed = {field: value for field, value in guesses.items() if field not in observed}
    disputed = tuple(field for field in guess.disputed if field in assumed)
    inference = LanguageInference(family.model_type, observed, assumed, guess.candidates, disputed)
    _check(shapes, sizes, inference.config())
    return inference


def _recognise(shapes: Shapes) -> Family:
    """Return the one family that has the names of the first decoder layer."""
    layer = frozenset(name.removeprefix(_FIRST) for name in shapes if name.startswith(_FIRST))
    if not layer or _TABLE not in shapes:
        raise CheckpointError(
            f"no language model is recognised below {shapes.prefix!r}: {_TABLE} and {_FIRST}* "
            f"were expected, found {sorted(shapes)[:3]}. Set models.language_config."
        )
    differences = {family.model_type: family.differences(layer) for family in FAMILIES}
    nearest = min(differences, key=lambda name: len(differences[name]))
    if differences[nearest]:
        raise CheckpointError(
            f"the language model below {shapes.prefix!r} is none of {', '.join(differences)}; "
            f"the nearest is {nearest}, but in layer 0 {', '.join(differences[nearest][:6])}. "
            "Set models.language_config."
        )
    return next(family for family in FAMILIES if family.model_type == nearest)


def _observe_heads(shapes: Shapes, observed: Observations) -> None:
    """Read head width and head counts off a query norm."""
    head_dim = shapes.dim(f"{_FIRST}self_attn.q_norm.weight", 0)
    observed.add("head_dim", head_dim)
    for field, part in (("num_attention_heads", "q"), ("num_key_value_heads", "k")):
        rows = shapes.dim(f"{_FIRST}self_attn.{part}_proj.weight", 0)
        observed.add(field, rows // head_dim, "rows / head_dim")


def _check(shapes: Shapes, sizes: Sizes, config: dict[str, Any]) -> None:
    """Require every tensor with the shape that the configuration gives it."""
    D, inner, rows = sizes.hidden_size, sizes.intermediate_size, sizes.query_rows
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    exact = heads * config["head_dim"] == rows and groups * config["head_dim"] == sizes.key_rows
    if not (groups and exact and heads % groups == 0):
        raise ContradictionError(
            f"{shapes.prefix}{_FIRST}self_attn: {rows} query rows and {sizes.key_rows} key rows "
            "are not those of query heads shared out evenly among key-value heads."
        )
    linears = {  # [out, in]
        "self_attn.q_proj": (rows, D),
        "self_attn.k_proj": (sizes.key_rows, D),
        "self_attn.v_proj": (sizes.key_rows, D),
        "self_attn.o_proj": (D, rows),
        "mlp.gate_proj": (inner, D),
        "mlp.up_proj": (inner, D),
        "mlp.down_proj": (D, inner),
    }
    expected: dict[str, tuple[int, ...]] = {f"{n}.weight": s for n, s in linears.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    expected |= {f"self_attn.{part}_norm.weight": (config["head_dim"],) for part in "qk"}
    expected |= {n: (D,) for n in _COMMON | _SANDWICH if n.endswith("layernorm.weight")}

    layers: dict[str, set[str]] = defaultdict(set)
    for name in shapes:
        if name.startswith(_LAYERS):
            index, _, rest = name.removeprefix(_LAYERS).partition(".")
            layers[index].add(rest)
    first = layers["0"]
    for index in range(sizes.num_hidden_layers):
        layer = shapes.under(f"{_LAYERS}{index}.")
        for name in sorted(first | layers[str(index)]):
            if name not in first:
                raise ContradictionError(
                    f"{layer.prefix}{name} has no counterpart in layer 0; all layers of a "
                    "language model have the same tensors."
                )
            layer.require(name, expected[name], "from embed_tokens and layer 0")
    shapes.require("model.norm.weight", (D,), "hidden_size")
    if "lm_head.weight" in shapes:
        shapes.require("lm_head.weight", (config["vocab_size"], D), "as embed_tokens")
