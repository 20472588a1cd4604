"""Pretrained vision towers: reading their configuration and weights, locally or from the hub.

Only the vision half of a two-tower model (SigLIP, CLIP) is ever loaded, so that a tower's tensors
have the same names whichever repository it came from.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from panovlm.errors import CheckpointError, ConfigError
from panovlm.models.hub import place_of, unanswered
from panovlm.models.sizes import UNUSABLE


def vision_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of the tower alone.

    Args:
        config: configuration of a tower, or of a two-tower model such as SigLIP or CLIP.
    """
    inner = config.to_dict().get("vision_config")
    return config if inner is None else cast(PreTrainedConfig, cast(Any, config).vision_config)


def tower_config(name_or_path: str) -> PreTrainedConfig:
    """Read the configuration of a tower from a folder or the model hub.

    Args:
        name_or_path: local folder with a ``config.json``, or hub id.

    Returns:
        The configuration of the tower alone, also where the model has two.

    Raises:
        ConfigError: it cannot be reached, or is of an unknown type.
    """
    return vision_config(_read_config(name_or_path))


def tower_processor(name_or_path: str) -> dict[str, Any] | None:
    """Read the configuration of a tower's image processor from a folder or the model hub.

    Args:
        name_or_path: local folder or hub id.

    Returns:
        The plain contents of ``preprocessor_config.json`` (else of the ``image_processor`` block
        of ``processor_config.json``); ``None`` if the tower comes without one.

    Raises:
        ConfigError: the hub cannot be reached, or a file is no JSON.
    """
    found = _read_json(name_or_path, "preprocessor_config.json")
    if found is not None:
        return found
    joint = _read_json(name_or_path, "processor_config.json")
    return None if joint is None else joint.get("image_processor")


def load_tower(name_or_path: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a tower with its pretrained weights.

    Args:
        name_or_path: local folder or hub id of a tower, or of a two-tower model around one.
        dtype: floating-point type of the weights; what is stored is converted to it.

    Returns:
        The tower alone, every weight of it from the file.

    Raises:
        ConfigError: the name cannot be reached, or transformers has no model for it.
        CheckpointError: the weights are damaged, or are not exactly those of the tower.
    """
    whole = _read_config(name_or_path)
    config = vision_config(whole)
    try:
        with _quiet_transformers():
            loaded = AutoModel.from_pretrained(
                _place(name_or_path),
                config=config,
                dtype=dtype,
                trust_remote_code=False,
                output_loading_info=True,
                # Reported below with everything else that does not fit.
                ignore_mismatched_sizes=True,
            )
    except OSError as error:
        raise _unreachable(name_or_path, "weights", error) from error
    except UNUSABLE as error:
        raise no_model(config, error) from error
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"the weights of vision tower {name_or_path!r} cannot be read: {_first_line(error)}. "
            "The file is damaged or incomplete; download it again."
        ) from error
    model, report = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    _check_complete(name_or_path, report, beside=_beside_the_tower(whole))
    return vision_part(model)


def _beside_the_tower(whole: PreTrainedConfig) -> set[str]:
    """Return the tensors that a two-tower model has besides its vision tower."""
    if vision_config(whole) is whole:
        return set()
    with torch.device("meta"):
        names = cast(PreTrainedModel, AutoModel.from_config(whole)).state_dict().keys()
    return {name for name in names if not name.startswith("vision_model.")}


def _check_complete(name: str, report: dict[str, Any], *, beside: set[str]) -> None:
    """Refuse a tower whose weights are not exactly those of the file, ``beside`` left out."""
    faults = {
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(set(report["unexpected_keys"]) - beside),
        "of another shape": sorted(str(fault[0]) for fault in report["mismatched_keys"]),
    }
    told = [f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in faults.items() if keys]
    if told:
        raise CheckpointError(
            f"the weights of vision tower {name!r} do not fit its config.json: {'; '.join(told)}. "
            "Use a folder whose config.json and weights belong together."
        )


def vision_part(model: PreTrainedModel) -> PreTrainedModel:
    """Return the tower inside ``model``, or ``model`` itself."""
    inner = dict(model.named_children()).get("vision_model")
    return model if inner is None else cast(PreTrainedModel, inner)


def _read_config(name_or_path: str) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(_place(name_or_path), trust_remote_code=False)
    except OSError as error:
        raise _unreachable(name_or_path, "configuration", error) from error
    except ValueError as error:
        raise ConfigError(
            f"the configuration of vision tower {name_or_path!r} cannot be used: "
            f"{_first_line(error)}"
        ) from error
    return cast(PreTrainedConfig, config)


def _read_json(name_or_path: str, file: str) -> dict[str, Any] | None:
    location = _location(name_or_path)
    folder = Path(location)
    path = folder / file if folder.is_dir() else _hub_file(location, file)
    if path is None or not path.is_file():
        return None
    try:
        return cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ConfigError(f"{path} is no valid JSON: {_first_line(error)}") from error


def _hub_file(name: str, file: str) -> Path | None:
    """Return a file of a hub repository; ``None`` if it is known that there is none."""
    silence = unanswered(name)
    try:
        return Path(hf_hub_download(name, file, local_files_only=silence is not None))
    except LocalEntryNotFoundError as error:  # no network; an earlier answer may be remembered
        if try_to_load_from_cache(name, file) is _CACHED_NO_EXIST:
            return None
        why = error if silence is None else LocalEntryNotFoundError(silence)
        raise _unreachable(name, file, why) from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise _unreachable(name, file, error) from error


def _location(name_or_path: str) -> str:
    """Return a folder with its ``~`` resolved, or the hub id as it is.

    Raises:
        ConfigError: it is spelled like a path, and no such folder exists.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or name_or_path.startswith(".") or name_or_path.count("/") > 1:
        raise ConfigError(
            f"the folder of the vision tower does not exist: {path}. Correct models.vision_name; "
            "it takes a local folder or a hub id such as google/siglip-base-patch16-224."
        )
    return name_or_path


def _place(name_or_path: str) -> str:
    """Return a folder, or the hub id of a model that is not in one; see :func:`place_of`.

    Raises:
        ConfigError: as :func:`_location`.
        LocalEntryNotFoundError: as :func:`place_of`.
    """
    location = _location(name_or_path)
    return location if Path(location).is_dir() else place_of(location)


def _unreachable(name: str, what: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"the {what} of vision tower {name!r} cannot be found: {_first_line(error)} Set "
        "models.vision_name to a local folder that holds config.json and weights (made on a "
        "machine with network by `hf download`), or build the tower untrained with "
        "models.vision_config."
    )


def no_model(config: PreTrainedConfig, error: Exception) -> ConfigError:
    """Return the error for a configuration that transformers cannot build a tower from."""
    return ConfigError(
        f"no vision tower can be built from a configuration of type {config.model_type!r}: "
        f"{type(error).__name__}: {_first_line(error).removesuffix('.')}. Look for a value in "
        "models.vision_config (or in the tower's own config.json) that the family does not have."
    )


@contextmanager
def _quiet_transformers() -> Generator[None]:
    """Keep transformers' own table of unused keys away: this module judges them itself."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
