"""What an experiment would train, found out without weights, images or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from panovlm.checkpoint.settle.backbone_files import named_config
from panovlm.config.schema import ModelSettings, Settings
from panovlm.data.samples import read_tables
from panovlm.data.tables import expanded
from panovlm.data.turns import all_turned
from panovlm.errors import ConfigError, DataError
from panovlm.models.assemble import backbone_configs
from panovlm.models.configuration import PanoramaVLMConfig
from panovlm.models.language.backbone import language_config
from panovlm.models.language.quantized import BYTES, quantizable
from panovlm.models.language.tokenizer import load_tokenizer, prepare_tokenizer, word_tokenizer
from panovlm.models.model import PanoramaVLM
from panovlm.models.sizes import possible_sizes
from panovlm.models.vision.grid import Grid
from panovlm.panorama.views import views_of
from panovlm.training.caches import check_frozen
from panovlm.training.freeze import ComponentCount, counts, freeze, trainable_parts, widen
from panovlm.training.overlap import check_batch, check_overlap
from panovlm.training.preflight import adapters_of, check_strategy
from panovlm.training.tables import stage_files

COPIES_OF_TRAINED = 3
"""What a trained parameter needs besides itself: gradient and AdamW's two moments."""


@dataclass(frozen=True)
class StagePlan:
    """What one stage trains.

    Attributes:
        name: the stage.
        components: parameters by component.
        memory: bytes of weights, gradients and optimizer state, without activations.
    """

    name: str
    components: list[ComponentCount]
    memory: int


@dataclass(frozen=True)
class Plan:
    """What an experiment would be.

    Attributes:
        views: views per panorama.
        tokens_per_view: tokens S of the tower, and S' after the resampler.
        vision_tokens: tokens T that the language model reads per panorama.
        vocabulary: rows of the language model's embeddings. ``None``: the tokenizer will be made of
            training texts that do not exist yet, and the embeddings are not counted.
        stages: one entry per stage.
    """

    views: int
    tokens_per_view: tuple[int, int]
    vision_tokens: int
    vocabulary: int | None
    stages: list[StagePlan]


@possible_sizes()
def plan(settings: Settings, stages: Sequence[str] | None = None) -> Plan:
    """Build the model without weights and count.

    The counts are those of the model that training would build, but for one thing: a language
    model that is loaded by name is counted with the embeddings of its ``config.json``, which
    training cuts or extends to its tokenizer's length.

    Args:
        settings: the experiment.
        stages: stages to plan; all of the experiment's when absent.

    Raises:
        ConfigError: a backbone's configuration cannot be had, settings do not fit together, or no
            tensor can be as large as they ask.
        DataError: a training table is there but cannot be read.
    """
    chosen = settings.training.stages if stages is None else stages
    if "vision" in chosen:
        check_overlap(settings)
        check_batch(settings)
    check_strategy(settings)
    check_frozen(settings, chosen)
    tower, language = _configs(settings.models)
    vocabulary = language.get_text_config().vocab_size
    if settings.models.language_config is not None:
        vocabulary = _vocabulary(settings)
        sized = {"vocab_size": vocabulary or 0, "pad_token_id": None}
        language = language_config({**settings.models.language_config, **sized})
    recipe = settings.recipe()
    lora = recipe.lora.model_copy(update={"use_lora": False})
    recipe = recipe.model_copy(update={"lora": lora.model_dump()})
    with torch.device("meta"):
        model = PanoramaVLM(PanoramaVLMConfig(recipe, vision_config=tower, text_config=language))
    size = recipe.image_processing.image_size or model.vision_backbone.image_size
    image = recipe.image_processing.model_copy(update={"image_size": size})
    views = len(views_of(image))
    tokens, grid = _tokens(model, size, views)
    return Plan(
        views=views,
        tokens_per_view=tokens,
        vision_tokens=model.projector.num_tokens(views, tokens[1], grid),
        vocabulary=vocabulary,
        stages=[_stage(model, settings, name) for name in chosen],
    )


def _configs(models: ModelSettings) -> tuple[PreTrainedConfig, PreTrainedConfig]:
    """Return the backbones' configurations; one error names all that cannot be had."""
    try:
        return backbone_configs(models)
    except ConfigError as error:
        named = {
            "vision_name": models.vision_name if models.vision_config is None else None,
            "language_model_name": (
                models.language_model_name if models.language_config is None else None
            ),
        }
        absent = [
            f"models.{field} ({name})"
            for field, name in named.items()
            if name is not None and named_config(name) is None
        ]
        if len(absent) < 2:
            raise
        raise ConfigError(
            f"{error} Neither backbone is on this machine: {' and '.join(absent)}. For a dry run "
            "a folder with its config.json is enough."
        ) from error


def _vocabulary(settings: Settings) -> int | None:
    """Return the tokens of an untrained language model, ``None`` while its texts do not exist."""
    name = settings.models.tokenizer_name
    texts = _texts(settings) if name is None else None
    if name is None and texts is None:
        return None
    tokenizer = word_tokenizer(texts or ()) if name is None else load_tokenizer(name)
    prepare_tokenizer(tokenizer)
    return len(tokenizer)


def _is_there(table: str) -> bool:
    """Tell whether a table, or every file that it means, exists."""
    try:
        return all(file.exists() for file in expanded(Path(table)))
    except DataError:
        return False


def _texts(settings: Settings) -> list[str] | None:
    """Return the texts that a word tokenizer is made of, if all training tables are there."""
    stages = settings.training.stages
    tables = dict.fromkeys(table for name in stages for table in stage_files(settings, name)[0])
    if not tables or not all(_is_there(table) for table in tables):
        return None
    samples = read_tables(
        tables,
        data_dir=settings.paths.data_dir,
        check_images=False,
        image_input=settings.data.input,
        stream_blocks=settings.data.stream_blocks,
    )
    recipe = settings.recipe()
    said = (turns for row in samples for turns in all_turned(row, settings.training.yaw_turns))
    texts = [text for turns in said for turn in turns for text in turn]
    return [*texts, recipe.system_messages.default, recipe.models.default_generation_prompt]


def _stage(model: PanoramaVLM, settings: Settings, name: str) -> StagePlan:
    """Prepare the model for a stage, as training would, and count."""
    stage = settings.training.stage_configs[name]
    adapters = adapters_of(settings, name)
    if adapters is not None and not model.recipe.lora.use_lora:
        model.add_adapters(adapters)
    freeze(model, trainable_parts(name, stage))
    half = settings.environment.precision == "bf16-true"
    if not half:
        widen(model)
    memory = sum(
        (1 + COPIES_OF_TRAINED * parameter.requires_grad)
        * parameter.numel()
        * (2 if half else parameter.element_size())
        for parameter in model.parameters()
    )
    kind = settings.models.language_quantization
    if kind != "none":
        layers = [linear for _, linear in quantizable(model.language_model)]
        saved = (la.weight.numel() * (la.weight.element_size() - BYTES[kind]) for la in layers)
        memory -= round(sum(saved))
    return StagePlan(name, counts(model), memory)


def _tokens(
    model: PanoramaVLM, size: tuple[int, int], views: int
) -> tuple[tuple[int, int], Grid | None]:
    """Return the tokens of one view behind the tower and behind the resampler, and their grid.

    Nothing is computed: on torch's meta device only shapes are worked out.
    """
    with torch.no_grad():
        pixels = torch.empty(1, views, 3, *size, device="meta")
        features = model.vision_features(pixels)
        resampled, grid = model.resampled(pixels)
    return (features.shape[1], resampled.shape[1]), grid
