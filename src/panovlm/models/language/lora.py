"""Low-rank adapters on the language model, by PEFT.

LoRA is that of Hu et al. (2021, arXiv:2106.09685), DoRA that of Liu et al. (2024,
arXiv:2402.09353).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from panovlm.config.model_recipe import LoRASettings, TargetPreset
from panovlm.errors import ConfigError
from panovlm.models.language.adapters import ADAPTER
from panovlm.models.language.pretrained import brief


def attach_lora(language_model: PreTrainedModel, settings: LoRASettings) -> PeftModel:
    """Put adapters on ``language_model``, in place, and freeze everything else in it.

    An adapted Linear ``W`` computes ``W x + alpha / rank * B A x``; B starts at zero. Its names
    become ``base_model.model.<name>.base_layer.weight``, ``<name>.lora_A.default.weight``
    [rank, in] and ``<name>.lora_B.default.weight`` [out, rank]. With ``use_dora`` the rows of
    ``W + alpha / rank * B A`` have the lengths ``<name>.lora_magnitude_vector.default.weight``
    [out], at first those of ``W``. Adapters are made on the device of the layer they belong to: on
    a meta model they take no memory.

    Args:
        language_model: causal language model without adapters.
        settings: rank, alpha, dropout and the names of the Linear layers to adapt; whether
            ``use_lora`` is set is not looked at.

    Raises:
        ConfigError: a target names no Linear layer, or one tied to the token embeddings; or the
            model has adapters already.
    """
    if isinstance(language_model, PeftModel):
        raise ConfigError("the language model has adapters already; merge them first.")
    targets = check_targets(language_model, settings)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=cast("int", settings.alpha),  # PEFT only divides it by the rank
        lora_dropout=settings.dropout,
        target_modules=list(targets),
        use_dora=settings.use_dora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        return cast("PeftModel", get_peft_model(language_model, config))
    except ValueError as error:  # layers that PEFT knows to be called by more than their name
        raise ConfigError(
            f"lora.target_modules cannot be {', '.join(targets)}: {brief(error)}"
        ) from error


def check_targets(language_model: nn.Module, settings: LoRASettings) -> tuple[str, ...]:
    """Find out where adapters are put, and whether they can be put there.

    Returns:
        The names that ``target_modules`` stands for, last components of a preset's.

    Raises:
        ConfigError: a target names no Linear layer, or one tied to the token embeddings.
    """
    table = cast("PreTrainedModel", language_model).get_input_embeddings().weight
    linears = {n: m for n, m in language_model.named_modules() if isinstance(m, nn.Linear)}
    targets = _named(language_model, linears, settings.target_modules)
    unmatched = [t for t in targets if not any(_matches(n, t) for n in linears)]
    if unmatched or not targets:
        known = sorted({name.rsplit(".", 1)[-1] for name in linears})
        raise ConfigError(
            f"lora.target_modules: {unmatched or 'the empty list'} names no Linear layer of "
            f"{type(language_model).__name__}; it has {', '.join(known)}."
        )
    for name, linear in linears.items():
        if linear.weight is table and any(_matches(name, t) for t in targets):
            raise ConfigError(
                f"lora.target_modules: {name} shares its weight with the token embeddings, so "
                "merging its adapter would change those; leave it out."
            )
    return targets


_BLOCKS = {"attention": ("attn", "attention"), "mlp": ("mlp", "feed_forward", "ffn")}
"""What the blocks of a preset are called, or what their names end with."""


def _named(
    language_model: nn.Module,
    linears: Mapping[str, nn.Module],
    targets: tuple[str, ...] | TargetPreset,
) -> tuple[str, ...]:
    """Return the names that a preset stands for in this model; names stay as they are.

    Raises:
        ConfigError: no block of that kind has a Linear layer, or their names mean others as well.
    """
    if isinstance(targets, tuple):
        return targets
    output = cast("PreTrainedModel", language_model).get_output_embeddings()
    inside = {name: m for name, m in linears.items() if m is not output}
    if targets != "all-linear":
        ends = _BLOCKS[targets]
        inside = {n: m for n, m in inside.items() if _block(n).endswith(ends)}
    names = tuple(dict.fromkeys(name.rsplit(".", 1)[-1] for name in inside))
    others = [n for n in linears if n not in inside and n.rsplit(".", 1)[-1] in names]
    if others or not names:
        fault = f"the same names as {others[0]}" if others else "no such layers"
        raise ConfigError(
            f"lora.target_modules {targets}: {type(language_model).__name__} has {fault}; give the "
            f"names of the layers, last components of {', '.join(list(linears)[:8])}, ..."
        )
    return names


def _block(name: str) -> str:
    """Return the last component of the name of what a layer is in."""
    return name.rpartition(".")[0].rpartition(".")[2]


def adapter_effect(model: nn.Module) -> float | None:
    """Return the largest change of a weight by the first adapter that was trained.

    Returns:
        The largest absolute entry of ``alpha / rank * B A``; zero where any adapter with a B that
        is not zero has an A that is (training cannot give that), not a number where any adapter
        holds values that are not finite; ``None`` where every B is zero: the adapters are as
        :func:`attach_lora` makes them and have no effect.
    """
    effect: float | None = None
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        down = cast("nn.Linear", layer.lora_A[ADAPTER]).weight.detach().float()
        up = cast("nn.Linear", layer.lora_B[ADAPTER]).weight.detach().float()
        if not bool(up.isfinite().all() and down.isfinite().all()):
            return math.nan
        if not bool(up.any()):
            continue
        if not bool(down.any()):
            return 0.0
        if effect is None:  # one product is enough; those of all layers would take long
            effect = float((layer.scaling[ADAPTER] * (up @ down)).abs().max())
    return effect


def require_usual_adapters(model: nn.Module, settings: LoRASettings) -> None:
    """Refuse a state in which the weights of a model do not say what it computes.

    Args:
        model: any module, with adapters or without.
        settings: what is recorded of the adapters.

    Raises:
        ConfigError: adapters are added into the weights and there as well, so that loading would
            add them twice; they are switched off, or others are used in their place; or they are
            scaled otherwise than recorded.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        there = list(layer.lora_A) or list(layer.lora_embedding_A)
        main = there[0] if len(there) == 1 else ADAPTER
        if layer.disable_adapters or layer.active_adapters != [main]:
            used = "none" if layer.disable_adapters else layer.active_adapters
            raise ConfigError(
                f"of the adapters of {name}, {used} are in use for now, but whoever loads the "
                f"weights would use {main!r}. Call enable_adapter_layers() and "
                f"set_adapter({main!r}) of the language model before the weights are saved, or "
                "unload() to do without adapters for good."
            )
        if layer.merged:
            raise ConfigError(
                f"the adapters of {name} are merged into its weight for now and would be added "
                "once more by whoever loads it. Call unmerge_adapter() before the weights are "
                "saved, or merge_adapters() of the model to merge them for good."
            )
        scale = layer.scaling.get(ADAPTER)
        usual = settings.alpha / settings.rank
        if settings.use_lora and scale is not None and not math.isclose(scale, usual):
            raise ConfigError(
                f"the adapters of {name} are scaled by {scale:g}, but lora.alpha / lora.rank is "
                f"{usual:g}, which is what is saved. Scale them back before the weights are saved."
            )


def settings_in_use(language_model: nn.Module, settings: LoRASettings) -> LoRASettings:
    """Return the settings of a language model's adapters, also where PEFT alone put them there.

    Args:
        language_model: with adapters or without.
        settings: what is recorded of them.

    Raises:
        ConfigError: adapters that nobody recorded have several ranks or scales.
    """
    modules = language_model.named_modules()
    layers = {name: layer for name, layer in modules if isinstance(layer, LoraLayer)}
    if settings.use_lora or not layers:
        return settings
    found = {
        (layer.r[name], layer.scaling[name], bool(layer.use_dora.get(name)))
        for layer in layers.values()
        for name in layer.active_adapters
    }
    if len(found) > 1:
        raise ConfigError(
            "the adapters of the language model have several ranks or scales (rank, scale, DoRA: "
            f"{sorted(found)}), and no checkpoint can tell which layer has which. Use one rank and "
            "one alpha, or merge them with merge_adapters() before the weights are saved."
        )
    rank, _, dora = found.pop()
    layer = next(iter(layers.values()))
    name = layer.active_adapters[0]
    targets = tuple(sorted({name.rpartition(".")[2] for name in layers}))
    return settings.model_copy(
        update={
            "use_lora": True,
            "rank": rank,
            "alpha": _alpha(layer, name),
            "dropout": float(getattr(layer.lora_dropout[name], "p", 0)),
            "use_dora": dora,
            "target_modules": targets,
        }
    )


def _alpha(layer: LoraLayer, name: str) -> float:
    """Return the alpha that gives the scale of a layer's adapters, alpha / rank.

    In the very number that their configuration states, so that the two agree.
    """
    stated, rank, scale = layer.lora_alpha[name], layer.r[name], layer.scaling[name]
    roots = math.sqrt(rank)
    if math.isclose(scale * rank, stated):
        return float(stated)
    return stated * roots if math.isclose(scale * roots, stated) else scale * rank


def require_recorded_adapters(model: nn.Module, settings: LoRASettings) -> None:
    """Refuse what a model's record does not tell: a document about it would be wrong.

    Args:
        model: any module, with adapters or without.
        settings: what is recorded of the adapters.

    Raises:
        ConfigError: there are adapters and none are recorded, or modules are trained with them.
    """
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and not settings.use_lora:
            raise ConfigError(
                f"{name} has adapters, but the model's recipe says that it has none. Put them on "
                "with the model's add_adapters(), which records them."
            )
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise ConfigError(
                f"{name} is replaced by one that PEFT trains with the adapters (modules_to_save, "
                "trainable tokens), which is not recorded. Save the state dict alone, or call "
                "merge_adapters() of the model first."
            )


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """Add the adapters to the weights they belong to and return the plain language model.

    ``model`` is used up: its modules become those of the result.

    Raises:
        ConfigError: ``model`` has no adapters.
    """
    if not isinstance(model, PeftModel):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{type(model).__name__} has no adapters to merge; attach them first.")
    return cast("PreTrainedModel", model.merge_and_unload())


def _matches(module: str, target: str) -> bool:
    """Tell whether PEFT adapts ``module`` for ``target``: equal, or its last path components."""
    return module == target or module.endswith(f".{target}")
