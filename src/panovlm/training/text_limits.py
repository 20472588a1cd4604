"""How long the texts of an experiment's tables may be, before there is a model."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from panovlm.config.schema import Settings
from panovlm.data.check import Measure
from panovlm.data.samples import Sample
from panovlm.models.language.chat import IGNORED, ChatFormat, resolve_max_length
from panovlm.models.language.tokenizer import load_tokenizer, prepare_tokenizer, word_tokenizer
from panovlm.training.tables import stage_files


def text_measure(settings: Settings) -> Measure:
    """Return what judges the rows of tables by the limits of the stages that read them.

    A table that no stage names is judged by the tightest of all stages.

    Raises:
        ConfigError: the tokenizer cannot be had.
    """
    recipe = settings.recipe()
    name = recipe.models.tokenizer_name
    if name is None and recipe.models.language_config is None:
        name = recipe.models.language_model_name
    # A tokenizer of words takes one token for every word, whichever words it knows.
    tokenizer = word_tokenizer(()) if name is None else load_tokenizer(name)
    prepare_tokenizer(tokenizer)
    chat = ChatFormat.of(recipe, tokenizer)
    limits = _limits(settings, tokenizer)

    def measure(file: Path, sample: Sample) -> str:
        own = [limit for limit, files in limits if str(file) in files]
        limit = min(own or [limit for limit, _ in limits])
        ids, labels = chat.training_example(sample.turns, None)
        if len(ids) <= limit:
            return ""
        kept = any(label != IGNORED for label in labels[:limit])
        what = "its end is cut off" if kept else "nothing of the answer is left"
        return f"{len(ids)} tokens of {limit}: {what}"

    return measure


def _limits(
    settings: Settings, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, tuple[str, ...]]]:
    """Return the limit of every stage, and its tables; those of stage vision have none."""
    models = settings.recipe().models
    found: list[tuple[int, tuple[str, ...]]] = []
    for name in settings.training.stages:
        setting = settings.training.stage_configs[name].max_text_length or models.max_text_length
        # "auto:dataset" follows the texts up to the limit of "auto".
        limit = resolve_max_length("auto" if setting == "auto:dataset" else setting, tokenizer, ())
        if models.fusion_text_limit is not None:
            limit = min(limit, models.fusion_text_limit)
        if name != "vision":
            train, val = stage_files(settings, name)
            found.append((limit, (*train, *val)))
    return found
