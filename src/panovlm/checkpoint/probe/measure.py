"""Running a model on the fixed inputs of a probe.

The cost is bounded by one view through tower and resampler and a line of text through the language
model: less than the forward pass of one training sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from panovlm.checkpoint.probe import patterns
from panovlm.checkpoint.probe.patterns import sketch
from panovlm.checkpoint.probe.record import Inputs, Measured, Part, Probe, Sketch, coarsest
from panovlm.config.schema import ImageProcessing, Recipe
from panovlm.models.attention import exact_attention
from panovlm.models.compilation import uncompiled
from panovlm.models.language.chat import ChatFormat
from panovlm.models.language.quantized import quantized
from panovlm.models.model import PanoramaVLM
from panovlm.models.samples import samples
from panovlm.models.vision.loop import LoopPlaces
from panovlm.panorama.pipeline import ViewPipeline
from panovlm.panorama.views import views_of

PANORAMA = (128, 256)
"""Height and width of the panorama that the views are cut from."""
TEXT_TOKENS = 8
VISION_TOKENS = 8
QUESTION = "What is behind you?"
FAINT = 1e-3
"""Size of what norms are probed with: its variance is about the eps of usual norms."""
LOOP = 3
"""Views of a resampler in which views see each other."""

COMPONENTS: Mapping[Part, str] = {
    "tower": "vision_backbone",
    "resampler": "resampler_module",
    "projector": "projector",
    "language": "language_model",
}
"""The part of the model behind each probed part that has weights."""


def take_probe(model: PanoramaVLM, *, assumed: Sequence[str] = ()) -> Probe | None:
    """Run a model on the fixed inputs.

    Nothing about the model changes: not its modes (training or evaluation), not the random
    generators, no gradient is computed.

    Args:
        model: the model.
        assumed: settings of it that nobody knows; the probe will be no evidence of them.

    Returns:
        The probe; ``None`` for a model whose weights are spread over several processes, none of
        which could run it alone.

    Raises:
        ConfigError: the views cannot be cut with the model's settings, or its tokenizer's chat
            template refuses a conversation.
    """
    if is_sharded(model):
        return None
    image = model.recipe.image_processing
    rows = cast(Any, model.get_input_embeddings()).weight.shape[0]
    pixels = image.image_size
    if pixels is None or image.use_vision_processor:
        pixels = model.vision_backbone.image_size
    with undisturbed(model):
        tower = _tower(model, pixels)
        resampler = _resampler(model, pixels, tower.shape[1])
        inputs = Inputs(
            pixels=pixels,
            tokens=tower.shape[1],
            resampled=resampler.shape[1],
            views=len(views_of(image)),
            text_ids=patterns.text_ids(TEXT_TOKENS, rows, model.config.vision_token_id),
        )
        outputs: dict[Part, Tensor] = {
            "tower": tower,
            "resampler": resampler,
            "projector": _projector(model, inputs),
            "language": _language(model, inputs),
        }
        parts: dict[Part, Measured] = {
            part: _measured(model, part, output) for part, output in outputs.items()
        }
    return Probe(
        inputs=inputs,
        parts=parts,
        views=measure_views(image),
        prompt={} if model.tokenizer is None else measure_prompt(model.recipe, model.tokenizer),
        assumed=tuple(assumed),
    )


def measure_part(model: PanoramaVLM, part: Part, inputs: Inputs) -> Measured:
    """Run one part of a model that has weights on its fixed input."""
    with undisturbed(model):
        match part:
            case "tower":
                output = _tower(model, inputs.pixels)
            case "resampler":
                output = _resampler(model, inputs.pixels, inputs.tokens)
            case "projector":
                output = _projector(model, inputs)
            case _:
                output = _language(model, inputs)
        return _measured(model, part, output)


def measure_views(image: ImageProcessing) -> dict[str, Sketch]:
    """Return what becomes of a fixed panorama before the tower sees it."""
    pipeline = ViewPipeline(image)
    levels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 16, 16, 3)
    return {
        "pictures": sketch(pipeline.render(patterns.picture(*PANORAMA)).astype(np.float64)),
        "values": sketch(pipeline.normalise(levels).astype(np.float64)),
    }


def measure_prompt(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return digests of the token ids of a fixed question, and of the model's own one."""
    chat = ChatFormat.of(recipe, tokenizer)
    asked = {"question": QUESTION, "default": recipe.models.default_generation_prompt}
    return {
        name: hashlib.sha256(json.dumps(chat.prompt(text)).encode()).hexdigest()
        for name, text in asked.items()
    }


def precisions(model: nn.Module) -> dict[Part, str]:
    """Return the coarsest number type of each part's weights."""
    return {part: _precision(getattr(model, name)) for part, name in COMPONENTS.items()}


def is_sharded(model: nn.Module) -> bool:
    """Tell whether a model's weights are spread over several processes."""
    wrappers = any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules())
    return wrappers or any(isinstance(parameter, DTensor) for parameter in model.parameters())


@contextmanager
def undisturbed(model: nn.Module) -> Generator[None]:
    """Evaluate a model in its own number types, and leave everything as it was."""
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    on_gpu = [device] if device.type == "cuda" else []
    try:
        model.eval()
        with (
            torch.random.fork_rng(devices=on_gpu),
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            exact_attention(model),
            uncompiled(model),
        ):
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _tower(model: PanoramaVLM, pixels: tuple[int, int]) -> Tensor:
    """Return the tower's tokens ``[1, S, Dv]`` of one view."""
    view = torch.from_numpy(patterns.picture(*pixels)).float().permute(2, 0, 1) / 127.5 - 1
    return model.vision_features(view[None].to(model.device))


def _resampler(model: PanoramaVLM, pixels: tuple[int, int], tokens: int) -> Tensor:
    """Return the resampler's tokens ``[1, S', D]`` of one view, or those of a loop of views."""
    views = LOOP if model.resampler_module.crosses_views else 1
    view = model.view_grid(pixels, tokens)
    width = model.vision_backbone.hidden_size
    return model.resampler_module(
        _noise(model.resampler_module, views, tokens, width, device=model.device),
        view,
        num_views=views,
    )


def _projector(model: PanoramaVLM, inputs: Inputs) -> Tensor:
    """Return the vision tokens ``[1, T, Dm]`` of all views."""
    width = model.recipe.models.latent_dimension
    grid = model.resampler_module.grid(model.view_grid(inputs.pixels, inputs.tokens))
    shape = inputs.views, inputs.resampled, width
    tokens = _noise(model.projector, *shape, device=model.device)
    return model.projector(tokens, inputs.views, grid)


def _language(model: PanoramaVLM, inputs: Inputs) -> Tensor:
    """Return the logits ``[vocabulary]`` behind a few vision tokens and a line of text."""
    width = model.projector.linear.out_features
    vision = torch.from_numpy(patterns.noise(1, VISION_TOKENS, width)).to(model.device)
    ids = torch.tensor([inputs.text_ids], device=model.device)
    if model.vision_rope is not None:
        with model.vision_rope.instead(_ring(VISION_TOKENS)):
            return model(vision_tokens=vision, input_ids=ids, use_cache=False).logits[0, -1]
    return model(vision_tokens=vision, input_ids=ids, use_cache=False).logits[0, -1]


def _ring(count: int) -> LoopPlaces:
    """Return the places of tokens that stand evenly around the horizon."""
    yaws = 2 * np.pi * np.arange(count) / count
    directions = np.stack((np.sin(yaws), np.zeros(count), np.cos(yaws)), axis=1)
    return LoopPlaces.of(0, (count,), directions, float(count))


def _noise(module: nn.Module, *shape: int, device: torch.device) -> Tensor:
    """Return fixed tokens of a shape, of the type that a module's weights have."""
    weights = (p.dtype for p in module.parameters() if p.is_floating_point())
    return torch.from_numpy(patterns.noise(*shape)).to(device, next(weights, torch.float32))


def _measured(model: PanoramaVLM, part: Part, output: Tensor) -> Measured:
    """Return everything that is kept of one part."""
    component: nn.Module = getattr(model, COMPONENTS[part])
    sketches = {"output": sketch(_numbers(output))}
    for name, values in (
        ("norms", _norms(component)),
        ("activations", _activations(component)),
        ("frequencies", _frequencies(component)),
    ):
        if values:
            sketches[name] = sketch(np.concatenate(values))
    return Measured(
        dtype=_precision(component),
        device=model.device.type,
        sketches=sketches,
        weights=sketch(_samples(component)),
    )


def _norms(component: nn.Module) -> list[patterns.Array]:
    """Return the size of every norm's answer to a faint input, in no order but their own.

    On inputs of usual size eps does not show.
    """
    sizes: list[float] = []
    for module in component.modules():
        normalises = isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")
        weight = getattr(module, "weight", None) if normalises else None
        if isinstance(weight, Tensor) and weight.ndim == 1:
            faint = torch.from_numpy(patterns.noise(1, weight.shape[0]) * FAINT)
            faint = faint.to(weight.device, weight.dtype)
            # Some LayerNorms turn pictures round first; what they do to one place is the same.
            layer_norm = isinstance(module, nn.LayerNorm)
            answer = _numbers(nn.LayerNorm.forward(module, faint) if layer_norm else module(faint))
            sizes.append(float(np.sqrt(np.mean(answer**2))))
    return [np.sort(np.array(sizes))] if sizes else []


def _activations(component: nn.Module) -> list[patterns.Array]:
    """Return the mean answer of the activation functions to the numbers from -4 to 4."""
    weight = next(component.parameters(), None)
    if weight is None:
        return []
    ramp = torch.linspace(-4, 4, 65).to(weight.device, weight.dtype)
    answers = [_numbers(module(ramp)) for module in component.modules() if _is_pointwise(module)]
    return [np.mean(np.stack(answers), axis=0)] if answers else []


def _is_pointwise(module: nn.Module) -> bool:
    """Tell whether a module is an activation function without weights."""
    home = type(module).__module__
    bare = next(module.parameters(), None) is None and next(module.children(), None) is None
    return bare and home in ("torch.nn.modules.activation", "transformers.activations")


def _frequencies(component: nn.Module) -> list[patterns.Array]:
    """Return the frequencies of rotary positions."""
    return [
        _numbers(buffer).reshape(-1)
        for name, buffer in component.named_buffers()
        if name.rpartition(".")[2] == "inv_freq"
    ]


def _samples(component: nn.Module) -> patterns.Array:
    """Return a few values of every weight, by name; a tied one counts under each of its names.

    Of a quantised weight, values from before: weights are those of then whatever is made of them.
    """
    state = component.state_dict()
    found = {name: samples(tensor) for name, tensor in state.items() if tensor.is_floating_point()}
    found |= {f"{name}.weight": layer.samples for name, layer in quantized(component)}
    values = [found[name].float().cpu() for name in sorted(found)]
    return _numbers(torch.cat(values)) if values else np.zeros(0)


def _precision(component: nn.Module) -> str:
    """Return the coarsest type of a component's weights, that of its input where it has none."""
    names = {str(p.dtype) for p in component.parameters() if p.is_floating_point()}
    return coarsest(name.removeprefix("torch.") for name in names or {"torch.float32"})


def _numbers(values: Tensor) -> patterns.Array:
    return values.detach().cpu().to(torch.float64).numpy()  # Apple's GPUs do not know float64
