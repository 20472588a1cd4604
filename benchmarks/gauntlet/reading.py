"""How scripts without PanoVLM's reader get at weights and settings: with torch and safetensors.

What a careful script does is done here, so that a loader is not blamed for what a few lines would
mend: a container is opened by the means that its own library has, ``model.`` is taken off where all
names share it, and settings are read from the document beside the checkpoint, from ``config.json``
or from Lightning's hyper-parameters. Backbones, tokenizer and size of a view are always known.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from benchmarks.gauntlet.case import Made
from benchmarks.gauntlet.verdict import NotApplicableError
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from panovlm.checkpoint.documents import original
from panovlm.checkpoint.fields import nest
from panovlm.config.schema import Recipe
from panovlm.models.configuration import PanoramaVLMConfig
from panovlm.models.model import PanoramaVLM

SIDECAR = "checkpoint_metadata.json"
SINGLE = ("model.safetensors", "pytorch_model.bin")
ENTRIES = ("state_dict", "model")
AVERAGES = ("state_dict_ema", "ema_state_dict", "ema")


def chosen(path: Path) -> Path:
    """Return the file that a script would take out of a folder."""
    if not path.is_dir() or (path / ".metadata").is_file():
        return path
    for name in ("best.ckpt", "last.ckpt", *SINGLE, *(f"{name}.index.json" for name in SINGLE)):
        if (path / name).exists():
            return chosen(path / name)
    if (path / "latest").is_file():
        raise NotApplicableError("needs DeepSpeed's own converter")
    newest = sorted(path.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    if newest:
        return newest[-1]
    if (path / "adapter_config.json").is_file():
        raise NotApplicableError("adapters beside parts of a model")
    raise FileNotFoundError(f"no checkpoint in {path}")


def torch_file(path: Path, scratch: Path) -> Path:
    """Return a torch file with the contents of ``path``: itself, or a distributed one converted."""
    if path.is_dir():
        whole = scratch / "converted.pt"
        dcp_to_torch_save(path, whole)
        return whole
    if path.suffix in {".safetensors", ".json"}:
        raise NotApplicableError("no torch file")
    return path


def contents(path: Path) -> Mapping[str, Any]:
    """Read a file or folder; a bare state dict comes back as it is."""
    path = chosen(path)
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".json":
        shards = json.loads(path.read_text())["weight_map"].values()
        files = [path.parent / name for name in sorted(set(shards))]
        return {name: tensor for file in files for name, tensor in contents(file).items()}
    with tempfile.TemporaryDirectory() as scratch:
        return torch.load(torch_file(path, Path(scratch)), map_location="cpu")


def state_dict(found: Mapping[str, Any], made: Made) -> dict[str, Tensor]:
    """Return the weights, the averaged ones where the user means those."""
    entries = (*AVERAGES, *ENTRIES) if made.weights == "ema" else ENTRIES
    state = next((found[name] for name in entries if name in found), found)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if tensors and all(name.startswith("model.") for name in tensors):
        return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    return tensors


def defaults(made: Made, **models: Any) -> Recipe:
    """Return what is built where nothing is known: the defaults, but for the backbones."""
    true = made.model.config.typed_recipe()
    known = {
        "vision_config": true.models.vision_config,
        "language_config": true.models.language_config,
        "layout": true.models.layout,
    }
    size = {"image_size": true.image_processing.image_size}
    return Recipe.model_validate({"models": {**known, **models}, "image_processing": size})


def document(made: Made) -> Mapping[str, Any] | None:
    """Return the document beside the checkpoint, if there is one."""
    path = chosen(made.path)
    folders = [path.parent, path] if path.is_dir() else [path.parent]
    for place in (path.with_name(path.name + ".metadata.json"), *(f / SIDECAR for f in folders)):
        if place.is_file():
            return json.loads(place.read_text())
    return None


def configuration(made: Made) -> PanoramaVLMConfig | None:
    """Return the configuration that transformers wrote beside the weights, if there is one."""
    folder = made.path if made.path.is_dir() else made.path.parent
    there = (folder / "config.json").is_file()
    return PanoramaVLMConfig.from_pretrained(folder) if there else None


def settings(made: Made, found: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe that a script builds the model from.

    Args:
        made: the checkpoint.
        found: what its file holds, for the hyper-parameters.
    """
    known = document(made) or {}
    recipe: dict[str, Any] | None = None
    if "recipe" in known:
        recipe = known["recipe"]
    elif (config := configuration(made)) is not None:
        return stated(config.typed_recipe(), made)
    elif "model_config" in known:
        return translated(made, original.from_metadata(known, "mlp"))
    elif "hyper_parameters" in (found or {}):
        assert found is not None
        hyper = found["hyper_parameters"]
        if "recipe" not in hyper:
            return translated(made, original.from_hyper_parameters(found, "mlp"))
        recipe = hyper["recipe"]
    return stated(defaults(made) if recipe is None else Recipe.model_validate(recipe), made)


def translated(made: Made, fields: Mapping[str, Any]) -> Recipe:
    """Return the recipe of an older document; its backbones are known by name."""
    base = defaults(made).model_dump()
    models = {**base["models"], **nest(fields).get("models", {})}
    given = fields.get("models.resampler_type", "mlp")
    models["resampler_config"] = {
        name.rpartition(".")[2]: value
        for name, value in fields.items()
        if name.startswith("models.resampler_config.")
    }
    models["resampler_type"] = given
    image = {**base["image_processing"], **nest(fields).get("image_processing", {})}
    return stated(
        Recipe.model_validate({**base, "models": models, "image_processing": image}), made
    )


def stated(recipe: Recipe, made: Made) -> Recipe:
    """Return a recipe with what the user states laid over it."""
    plain = recipe.model_dump(mode="json")
    for name, value in made.stated.items():
        *path, leaf = name.split(".")
        place = plain
        for step in path:
            place = place[step]
        place[leaf] = value
    return Recipe.model_validate(plain)


def tokenizer_of(made: Made) -> Any:
    """Return the tokenizer of the training, for models that come without one."""
    return made.model.tokenizer


def build(recipe: Recipe, made: Made) -> PanoramaVLM:
    """Return a model with random weights, as every script does before it loads the others."""
    torch.manual_seed(0)
    model = PanoramaVLM(PanoramaVLMConfig(recipe))
    model.attach_tokenizer(tokenizer_of(made))
    return model
