"""The files of the original system: tiny backbones, run folders, metadata, configurations.

Written from the description of the original's formats; nothing of panovlm is used.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCE = "system user assistant You are helpful what is left right front a red ball house"
WORDS = SENTENCE.split()
VIT = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "max_position_embeddings": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION: dict[str, dict[str, Any]] = {
    "siglip": {"model_type": "siglip", "vision_config": VIT, "text_config": TEXT},
    "siglip_vision": {"model_type": "siglip_vision_model", **VIT},
    "clip": {"model_type": "clip", "vision_config": VIT, "text_config": TEXT},
    "dinov2": {
        "model_type": "dinov2",
        **{key: value for key, value in VIT.items() if key != "intermediate_size"},
        "mlp_ratio": 2,
    },
    "dinov2_swiglu": {
        "model_type": "dinov2",
        **{key: value for key, value in VIT.items() if key != "intermediate_size"},
        "mlp_ratio": 2,
        "use_swiglu_ffn": True,
    },
}
LM = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LANGUAGE: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2", **LM, "tie_word_embeddings": True, "rope_theta": 1e6},
    "qwen3": {"model_type": "qwen3", **LM, "head_dim": 8, "tie_word_embeddings": True},
    "llama": {"model_type": "llama", **LM, "tie_word_embeddings": False, "rms_norm_eps": 1e-5},
}
PROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
    "size": {"height": 16, "width": 16},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


@dataclass(frozen=True)
class Backbones:
    """Folders of backbones by short name."""

    vision: dict[str, Path]
    language: dict[str, Path]

    def tokenizer(self, name: str) -> Any:
        """What AutoTokenizer of transformers 4.x makes of the folder: the class that it names."""
        return PreTrainedTokenizerFast.from_pretrained(self.language[name])


def write_vision(folder: Path, config: dict[str, Any]) -> Path:
    torch.manual_seed(3)
    AutoModel.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def write_language(folder: Path, config: dict[str, Any], tokenizer: Any) -> Path:
    torch.manual_seed(4)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def word_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the common words; by default with end and pad tokens."""
    special = special or {"eos_token": "<|im_end|>", "pad_token": "<pad>"}
    vocabulary = ["<unk>", "<|im_start|>", "<|im_end|>", "<pad>", *WORDS]
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special)
    found.chat_template = CHATML
    return found


def write_backbones(root: Path) -> Backbones:
    vision = {name: write_vision(root / name, config) for name, config in VISION.items()}
    language = {
        name: write_language(root / name, config, word_tokenizer())
        for name, config in LANGUAGE.items()
    }
    return Backbones(vision, language)


# ---------------------------------------------------------------- names in the file (3)

DINOV2_OF_4 = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
OLDER = {
    "vision_backbone.encoder.": "vision_encoder.",
    "vision_backbone.norm.": "vicreg_norm.",
    "resampler_module.resampler.": "resampler.",
    "projector.linear.": "vision_to_language_projection.",
}


def names_of_4(name: str) -> str:
    """Name of a DINOv2 tensor as transformers 4.x wrote it."""
    for now, then in DINOV2_OF_4.items():
        if re.search(rf"encoder\.layer\.\d+\.{re.escape(now)}\.", name):
            return name.replace(now, then)
    return name.replace(".mlp.down_proj.", ".mlp.weights_out.") if "encoder.layer" in name else name


def fuse_gates(stored: dict[str, Tensor]) -> None:
    """Join gate and up projection of DINOv2's SwiGLU, as transformers 4.x stored them."""
    for name in [name for name in stored if re.search(r"encoder\.layer\..*\.gate_proj\.", name)]:
        pair = stored.pop(name), stored.pop(name.replace("gate_proj", "up_proj"))
        stored[name.replace("gate_proj", "weights_in")] = torch.cat(pair)


def older_name(name: str) -> str:
    for now, then in OLDER.items():
        if name.startswith(now):
            return then + name.removeprefix(now)
    return name


def is_alias(name: str) -> bool:
    return name.startswith(("resampler.", "vision_to_language_projection."))


def state_dict(
    model: Any,
    *,
    prefix: str | Callable[[str], str] = "model.",
    aliases: bool = True,
    older: bool = False,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """A model's tensors under the names that the original wrote."""
    stored: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if is_alias(name) and (older or not aliases):
            continue
        name = names_of_4(older_name(name) if older else name)
        whole = prefix(name) if callable(prefix) else prefix + name
        stored[whole] = tensor if dtype is None else tensor.to(dtype)
    fuse_gates(stored)
    return OrderedDict(stored)


# ---------------------------------------------------------------- documents (4, 6, 8)


def hyper_parameters(model: Any, backbones: Backbones, **changes: Any) -> dict[str, Any]:
    spec = model.spec
    lora = spec.lora or {}
    return {
        "stage": "finetune",
        "lr": 0.001,
        "vision_trainable_blocks": 0,
        "cache_cleanup_interval": 1000,
        "use_lora": True,
        "lora_rank": lora.get("r", 4),
        "lora_alpha": lora.get("lora_alpha", 8),
        "lora_dropout": 0.1,
        "pretrained_dir": None,
        "vision_name": str(backbones.vision[spec.vision]),
        "language_model_name": str(backbones.language[spec.language]),
        "resampler_type": spec.resampler_type,
        "latent_dimension": spec.latent_dimension,
        "vicreg_loss_weight": 0.0,
        "model_overlap_ratio": spec.overlap_ratio,
        **changes,
    }


def data_parameters(model: Any, backbones: Backbones, **changes: Any) -> dict[str, Any]:
    return {
        "csv_train": ["train.csv"],
        "csv_val": "val.csv",
        "batch_size": 2,
        "num_workers": 0,
        "image_size": (16, 16),
        "crop_strategy": "e2p",
        "tokenizer_name": str(backbones.language[model.spec.language]),
        "max_text_length": 256,
        "eval_mode": False,
        "system_msg": "You are helpful",
        "overlap_ratio": 0.5,
        "fov_deg": 90.0,
        "image_mean": None,
        "image_std": None,
        "use_vision_processor": True,
        "vision_model_name": str(backbones.vision[model.spec.vision]),
        "anyres_patch_size": 336,
        "anyres_max_patches": 12,
        "normalize": True,
        "auto_max_text_length_cap": 2048,
        "auto_max_text_length_floor": 64,
        "auto_max_text_length_scan_limit": 1000,
        **changes,
    }


def resampler_record(model: Any) -> dict[str, Any]:
    """``model_config.resampler_config`` of the metadata, with every field of its class."""
    from_spec = {"depth": 2, "use_ln": True, **model.sizes}
    common = {
        "latent_dimension": model.spec.latent_dimension,
        "dropout": 0.1,
        "num_views": 8,
        **from_spec,
    }
    kind = model.kind
    if kind == "bimamba":
        common["enable_cross_view"] = False
    if kind == "qformer":
        common |= {"hidden_dim": 768, "num_attention_heads": 12}
    return common


def metadata(model: Any, backbones: Backbones, **model_config: Any) -> dict[str, Any]:
    """A complete ``checkpoint_metadata.json``."""
    spec = model.spec
    return {
        "experiment_name": "TINY",
        "stage": "finetune",
        "stage_canonical": "finetune",
        "model_config": {
            "vision_name": str(backbones.vision[spec.vision]),
            "language_model_name": str(backbones.language[spec.language]),
            "resampler_type": spec.resampler_type,
            "latent_dimension": spec.latent_dimension,
            "image_size": [16, 16],
            "max_text_length": "auto",
            "vicreg_loss_weight": 1.0,
            "overlap_ratio": spec.overlap_ratio,
            "resampler_config": resampler_record(model),
            "resampler_hidden_dim": model.sizes.get("hidden_dim"),
            **model_config,
        },
        "training_config": {
            "learning_rate": 1e-3,
            "batch_size": 2,
            "accumulate_grad_batches": 2,
            "epochs": 1,
            "crop_strategy": "e2p",
            "fov_deg": 90.0,
            "overlap_ratio": 0.5,
            "use_vision_processor": True,
            "normalize": True,
            "use_lora": spec.lora is not None,
            "lora_rank": spec.lora and spec.lora.get("r", 4),
            "lora_alpha": spec.lora and spec.lora.get("lora_alpha", 8),
            "vision_trainable_blocks": 0,
        },
        "dataset": {
            "train_csv": "['train.csv']",
            "val_csv": "val.csv",
            "dataset_name": "train",
            "num_train_samples": 0,
            "num_val_samples": 0,
            "num_workers": 0,
        },
        "system": {"num_gpus": 0, "mixed_precision": "bf16-mixed"},
        "wandb": None,
        "config": {"source_path": "config.yaml", "saved_filename": "config.yaml"},
        "epoch_info": {"current_epoch": 1, "global_step": 7, "val_loss": 0.5},
        "checkpoint_info": {
            "created_at": "2025-11-01T00:00:00+00:00",
            "pytorch_lightning_version": "2.6.6",
            "torch_version": "2.9.0",
        },
    }


def older_metadata(model: Any, backbones: Backbones) -> dict[str, Any]:
    found = metadata(model, backbones)
    for key in ("resampler_config", "resampler_hidden_dim"):
        del found["model_config"][key]
    return found


def cut_off(document: dict[str, Any]) -> str:
    """The text that stays behind when the writer stops at ``resampler_config``."""
    text = json.dumps(document, indent=2)
    key = '"resampler_config": '
    return text[: text.index(key) + len(key)]


def model_block(model: Any, backbones: Backbones) -> dict[str, Any]:
    """The ``models`` block of a configuration that says everything."""
    spec = model.spec
    plain = (
        "latent_dimension resampler_type overlap_ratio use_vicreg_norm use_vicreg_projector "
        "vicreg_projector_dim vicreg_projector_hidden vicreg_projector_depth vicreg_projector_ln "
        "use_text_projection stitching_mode stitch_target_cols stitch_target_to_view_width "
        "stitch_interp use_projection_positional_encoding pe_spatial_encoding_type "
        "pe_enable_continuity pe_temperature vision_token_fallback_position max_text_length"
    )
    return {
        "vision_name": str(backbones.vision[spec.vision]),
        "language_model_name": str(backbones.language[spec.language]),
        **{name: getattr(spec, name) for name in plain.split()},
    }


def config(model: Any, backbones: Backbones, **models_block: Any) -> dict[str, Any]:
    """A ``config.yaml`` that says everything, resampler sizes nested."""
    nested = {"latent_dimension": model.spec.latent_dimension, **model.sizes}
    return {
        "experiment": {"name": "tiny"},
        "environment": {"cuda_visible_devices": "0"},
        "models": {
            **model_block(model, backbones),
            "resampler_config": nested,
            "pe_view_encoding_type": "sinusoidal",
            "stitch_stride_offset": 0,
            **models_block,
        },
        "image_processing": {
            "crop_strategy": "e2p",
            "image_size": [16, 16],
            "overlap_ratio": 0.5,
            "fov_deg": 90,
            "use_vision_processor": True,
            "stitching_mode": "concat",
        },
        "training": {
            "prefix": "tiny",
            "stages": ["vision", "resampler", "finetune"],
            "system_msg": "You are helpful",
            "wandb_project": "x",
            "stage_configs": {
                stage: {"epochs": 1, "lr": "5e-4", "batch_size": 1}
                for stage in ("vision", "resampler", "finetune")
            },
        },
        "data": {"csv_train": "train.csv"},
        "paths": {"runs_dir": "runs"},
        "lora": {"use_lora": True, "rank": 4, "alpha": 8, "save_lora_only": False},
        "generation": {"max_new_tokens": 64, "temperature": 0.6},
        "system_messages": {"default": "You are helpful"},
    }


# ---------------------------------------------------------------- the run folder (2, 5)


def checkpoint(
    model: Any,
    backbones: Backbones,
    *,
    hyper: dict[str, Any] | None,
    data: dict[str, Any] | None,
    weights_only: bool = True,
    **names: Any,
) -> dict[str, Any]:
    """What Lightning saves; ``hyper`` or ``data`` None: that entry is left out."""
    contents: dict[str, Any] = {
        "epoch": 1,
        "global_step": 7,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": state_dict(model, **names),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "hparams_name": None,
    }
    if hyper is not None:
        contents["hyper_parameters"] = hyper
    if data is not None:
        contents["datamodule_hparams_name"] = "kwargs"
        contents["datamodule_hyper_parameters"] = data
    if not weights_only:
        contents["callbacks"] = {"ModelCheckpoint{'monitor': 'val_loss'}": {"best_k_models": {}}}
        moment = {0: {"step": torch.tensor(7.0), "exp_avg": torch.zeros(3, 3)}}
        contents["optimizer_states"] = [{"state": moment, "param_groups": [{"lr": 1e-3}]}]
        contents["lr_schedulers"] = [{"last_epoch": 7, "_last_lr": [1e-3]}]
    return contents


def write_run(
    folder: Path,
    model: Any,
    backbones: Backbones,
    *,
    name: str = "last.ckpt",
    hyper: dict[str, Any] | bool | None = True,
    data: dict[str, Any] | bool | None = True,
    config: dict[str, Any] | None = None,
    sidecar: dict[str, Any] | str | None = None,
    **options: Any,
) -> Path:
    """Write a run folder and return its checkpoint.

    Args:
        hyper: hyper-parameters: True for those of a normal run, None for none.
        data: the data module's, likewise.
        config: contents of config.yaml, None for no such file.
        sidecar: contents of checkpoint_metadata.json; text is written as it is.
        options: as for :func:`checkpoint`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contents = checkpoint(
        model,
        backbones,
        hyper=hyper_parameters(model, backbones) if hyper is True else hyper or None,
        data=data_parameters(model, backbones) if data is True else data or None,
        **options,
    )
    torch.save(contents, folder / name)
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if sidecar is not None:
        text = sidecar if isinstance(sidecar, str) else json.dumps(sidecar, indent=2)
        (folder / "checkpoint_metadata.json").write_text(text)
    return folder / name
