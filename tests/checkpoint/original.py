"""The original system's model, written anew from the description of its checkpoints.

Plain torch and transformers: nothing of panovlm is used, so that a checkpoint written here and
loaded there is compared with what its own model computes. Sections below are those of the
description of the original's format.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, BertModel

VISION_TOKEN = "<|vision|>"
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Spec:
    """What one original model was built from (its ModelConfig, tiny)."""

    vision: str = "siglip"
    language: str = "qwen2"
    resampler_type: str = "mlp"
    resampler: dict[str, Any] = field(default_factory=dict)
    latent_dimension: int = 40
    overlap_ratio: float = 0.5
    use_vicreg_norm: bool = True
    use_vicreg_projector: bool = True
    vicreg_projector_dim: int | None = None
    vicreg_projector_hidden: int | None = None
    vicreg_projector_depth: int = 2
    vicreg_projector_ln: bool = True
    vicreg_reads_vision: bool = False  # the older layout, 3.8
    use_text_projection: bool = False
    stitching_mode: str = "drop_overlap"
    stitch_target_cols: int = 0
    stitch_target_to_view_width: bool = False
    stitch_interp: str = "nearest"
    use_projection_positional_encoding: bool = False
    pe_spatial_encoding_type: str = "sinusoidal"
    pe_enable_continuity: bool = True
    pe_temperature: float = 10000.0
    vision_token_fallback_position: str = "prefix"
    max_text_length: int = 512
    lora: dict[str, Any] | None = None
    merged: bool = False


# ---------------------------------------------------------------- resamplers (3.2 - 3.4)


class MLP(nn.Module):
    def __init__(self, dv: int, dl: int, *, hidden_dim: int, depth: int, use_ln: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = dv
        for _ in range(depth - 1):
            layers.append(nn.Linear(width, hidden_dim))
            if use_ln:
                layers.append(nn.LayerNorm(hidden_dim))
            layers.append(nn.GELU())
            width = hidden_dim
        layers.append(nn.Linear(width, dl))
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class Mamba(nn.Module):
    """One direction; the recurrence is written as the loop that it is."""

    def __init__(self, h: int, *, expand: float, d_state: int, d_conv: int) -> None:
        super().__init__()
        inner, self.rank, self.state, self.taps = (
            int(expand * h),
            math.ceil(h / 16),
            d_state,
            d_conv,
        )
        self.in_proj = nn.Linear(h, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1).repeat(inner, 1)))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, h, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(self.conv1d(u.transpose(1, 2))[..., :length]).transpose(1, 2)
        dt, b, c = self.x_proj(u).split([self.rank, self.state, self.state], dim=-1)
        delta = F.softplus(F.linear(dt, self.dt_proj.weight) + self.dt_proj.bias).float()
        a = -torch.exp(self.A_log.float())
        h = torch.zeros(*u[:, 0].shape, self.state)
        out = []
        for t in range(length):
            step = delta[:, t, :, None]
            h = torch.exp(step * a) * h + step * b[:, t, None].float() * u[:, t, :, None].float()
            out.append((h * c[:, t, None].float()).sum(-1) + self.D.float() * u[:, t].float())
        y = torch.stack(out, dim=1).to(x.dtype)
        return self.out_proj(y * F.silu(z))


class BiMambaBlock(nn.Module):
    def __init__(self, h: int, *, norm_first: bool, **sizes: Any) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.norm = nn.LayerNorm(h)
        self.forward_block = Mamba(h, **sizes)
        self.backward_block = Mamba(h, **sizes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x) if self.norm_first else x
        back = self.backward_block(y.flip(1)).flip(1)
        out = x + 0.5 * (self.forward_block(y) + back)
        return out if self.norm_first else self.norm(out)


class BiMamba(nn.Module):
    def __init__(
        self, dv: int, dl: int, *, hidden_dim: int, depth: int, norm_first: bool, **sizes: Any
    ) -> None:
        super().__init__()
        self.input_proj = nn.Linear(dv, hidden_dim)
        self.blocks = nn.ModuleList(
            BiMambaBlock(hidden_dim, norm_first=norm_first, **sizes) for _ in range(depth)
        )
        self.final_norm = nn.LayerNorm(hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, dl)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input_proj(x)
        for block in self.blocks:
            x = block(x)
        return self.output_proj(self.final_norm(x))


class QFormer(nn.Module):
    def __init__(self, dv: int, dl: int, *, num_query_tokens: int, num_hidden_layers: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, num_query_tokens, dv))
        self.bert = BertModel(
            BertConfig(
                hidden_size=dv,
                intermediate_size=4 * dv,
                num_attention_heads=8,
                num_hidden_layers=num_hidden_layers,
                is_decoder=True,
                add_cross_attention=True,
            )
        )
        self.proj = nn.Linear(dv, dl)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bert(
            inputs_embeds=self.query.expand(x.shape[0], -1, -1),
            encoder_hidden_states=x,
            use_cache=False,
        )
        return self.proj(out.last_hidden_state)


SIZES: dict[str, dict[str, Any]] = {
    "mlp": {"hidden_dim": 48, "depth": 3, "use_ln": True},
    "bimamba": {
        "hidden_dim": 48,
        "depth": 2,
        "d_state": 5,
        "d_conv": 3,
        "expand": 1.75,
        "norm_first": True,
    },
    "qformer": {"num_query_tokens": 9, "num_hidden_layers": 2},
}
KINDS = {"mlp": MLP, "bimamba": BiMamba, "bidirectional_mamba": BiMamba, "qformer": QFormer}
SPELLINGS = {"bidirectional_mamba": "bimamba", "bi_mamba": "bimamba"}


def kind(spec: Spec) -> str:
    return SPELLINGS.get(spec.resampler_type, spec.resampler_type)


def sizes(spec: Spec) -> dict[str, Any]:
    return {**SIZES[kind(spec)], **spec.resampler}


# ---------------------------------------------------------------- heads (3.6)


def vicreg_projector(spec: Spec, dv: int) -> nn.Module:
    out = spec.vicreg_projector_dim or spec.latent_dimension
    hidden = spec.vicreg_projector_hidden or out
    width = dv if spec.vicreg_reads_vision else spec.latent_dimension
    layers: list[nn.Module] = []
    for _ in range(spec.vicreg_projector_depth - 1):
        norm = nn.LayerNorm(hidden) if spec.vicreg_projector_ln else nn.Identity()
        layers += [nn.Linear(width, hidden), norm, nn.GELU()]
        width = hidden
    return Holder(mlp=nn.Sequential(*layers, nn.Linear(width, out)))


class Holder(nn.Module):
    """A module that only gives its children their names."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


# ---------------------------------------------------------------- positions, stitching (12, 13)


def grid_of(tokens: int) -> tuple[int, int]:
    side = math.isqrt(tokens)
    rows = max(d for d in range(1, side + 1) if tokens % d == 0)
    return rows, tokens // rows


def code(p: float, width: int, temperature: float) -> list[float]:
    half = width // 2
    w = [temperature ** (-2 * i / width) for i in range(half)]
    return [math.sin(p * f) for f in w] + [math.cos(p * f) for f in w] + [0.0] * (width - 2 * half)


def positions(spec: Spec, views: int, tokens: int, width: int) -> Tensor:
    rows, columns = grid_of(tokens)
    o = min(max(spec.overlap_ratio, 0.0), 0.999)
    step, length = (1 - o, views - (views - 1) * o) if spec.pe_enable_continuity else (1.0, views)
    table = []
    for v in range(views):
        for y in range(rows):
            for x in range(columns):
                g = v * step + x / columns
                parts = [2 * math.pi * g / length]
                if spec.pe_spatial_encoding_type == "sinusoidal":
                    parts += [float(y), g]
                codes = [code(p, width, spec.pe_temperature) for p in parts]
                table.append([sum(values) for values in zip(*codes, strict=True)])
    return torch.tensor(table, dtype=torch.float64).view(views, tokens, width)


def stitch(spec: Spec, x: Tensor) -> Tensor:
    """[B, V, rows, columns, D] -> [B, T, D]."""
    views, columns = x.shape[1], x.shape[3]
    k = min(max(round(columns * spec.overlap_ratio), 0), columns)
    if spec.stitching_mode == "resample":
        return resample(spec, x, k)
    drop = 0 if spec.stitching_mode == "concat" else k
    strips = [x[:, v, :, (drop if v else 0) :] for v in range(views)]
    return torch.cat(strips, dim=2).flatten(1, 2)


def resample(spec: Spec, x: Tensor, k: int) -> Tensor:
    B, V, rows, columns, D = x.shape
    span = spec.stitch_target_cols or V * columns - (V - 1) * k
    count = columns if spec.stitch_target_to_view_width else span
    at = torch.linspace(0, span - 1, count)
    step = columns - k if columns - k > 0 else columns
    total, weights = 0, 0
    for v in range(V):
        local = at - v * step
        gx = 2 * local / max(columns - 1, 1) - 1
        gy = torch.linspace(-1, 1, rows) if rows > 1 else torch.zeros(1)
        grid = torch.stack(torch.broadcast_tensors(gx[None, :], gy[:, None]), -1)
        mode = {"nearest": "nearest", "linear": "bilinear"}[spec.stitch_interp]

        def sample(picture: Tensor, grid: Tensor = grid, mode: str = mode) -> Tensor:
            spread = grid.expand(B, *grid.shape)
            return F.grid_sample(
                picture, spread, mode=mode, padding_mode="zeros", align_corners=True
            )

        picture = x[:, v].permute(0, 3, 1, 2)
        weight = sample(torch.ones(B, 1, rows, columns))
        total = total + sample(picture) * weight
        weights = weights + weight
    strip = total / weights.clamp(min=1e-6)
    return strip.permute(0, 2, 3, 1).reshape(B, rows * count, D)


# ---------------------------------------------------------------- the model (1)


class OriginalVLM(nn.Module):
    def __init__(self, spec: Spec, vision: Path, language: Path, tokenizer: Any) -> None:
        super().__init__()
        self.spec, self.tokenizer = spec, tokenizer
        self.kind, self.sizes = kind(spec), sizes(spec)
        encoder = AutoModel.from_pretrained(vision)
        encoder = getattr(encoder, "vision_model", encoder)
        dv = encoder.config.hidden_size
        parts = {"encoder": encoder}
        if spec.use_vicreg_norm:
            parts["norm"] = nn.LayerNorm(dv)
        self.vision_backbone = Holder(**parts)
        network = KINDS[spec.resampler_type](dv, spec.latent_dimension, **sizes(spec))
        self.resampler_module = Holder(resampler=network)
        if spec.use_vicreg_projector:
            self.vicreg_projector = vicreg_projector(spec, dv)
        lm = AutoModelForCausalLM.from_pretrained(language)
        if prepare(tokenizer):
            lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        self.vision_id = tokenizer.convert_tokens_to_ids(VISION_TOKEN)
        width = lm.config.hidden_size
        self.language_model = with_lora(lm, spec) if spec.lora else lm
        self.projector = Holder(linear=nn.Linear(spec.latent_dimension, width))
        if spec.use_text_projection:
            self.text_projection = nn.Linear(width, width)
        self.resampler = network
        self.vision_to_language_projection = self.projector.linear

    # stages ------------------------------------------------------

    def vision_features(self, pixels: Tensor) -> Tensor:
        encoder = self.vision_backbone.encoder
        pixels = pixels.flatten(0, 1).to(next(encoder.parameters()).dtype)
        tokens = encoder(pixel_values=pixels).last_hidden_state
        return self.vision_backbone.norm(tokens) if self.spec.use_vicreg_norm else tokens

    def resampled_features(self, pixels: Tensor) -> Tensor:
        return self.resampler_module.resampler(self.vision_features(pixels))

    def vision_tokens(self, pixels: Tensor) -> Tensor:
        B, V = pixels.shape[:2]
        tokens = self.resampled_features(pixels)
        S, D = tokens.shape[1:]
        views = tokens.view(B, V, S, D)
        if self.spec.use_projection_positional_encoding:
            views = (views + positions(self.spec, V, S, D)).to(views.dtype)
        out = self.projector.linear(views)
        return stitch(self.spec, out.unflatten(2, grid_of(S)))

    def fuse(
        self, pixels: Tensor, ids: Tensor, mask: Tensor, labels: Tensor | None, *, project: bool
    ) -> dict[str, Tensor]:
        """Section 10: text cut, placeholders out, vision tokens in; shorter rows padded."""
        longest = self.spec.max_text_length
        ids, mask = ids[:, :longest], mask[:, :longest]
        labels = None if labels is None else labels[:, :longest]
        text = self.language_model.get_input_embeddings()(ids)
        if project:
            text = self.text_projection(text)
        vision = self.vision_tokens(pixels).to(text.dtype)
        rows, masks, targets = [], [], []
        for b in range(len(ids)):
            places = (ids[b] == self.vision_id).nonzero().flatten().tolist()
            keep = [i for i in range(ids.shape[1]) if i not in places]
            front = self.spec.vision_token_fallback_position == "prefix"
            cut = places[0] if places else (0 if front else ids.shape[1])
            before = [i for i in keep if i < cut]
            after = [i for i in keep if i >= cut]
            count = vision.shape[1]
            rows.append(torch.cat([text[b, before], vision[b], text[b, after]]))
            masks.append(torch.cat([mask[b, before], mask.new_ones(count), mask[b, after]]))
            if labels is not None:
                blank = labels.new_full((count,), -100)
                targets.append(torch.cat([labels[b, before], blank, labels[b, after]]))
        pad = nn.utils.rnn.pad_sequence
        fused = {"inputs_embeds": pad(rows, True), "attention_mask": pad(masks, True)}
        if labels is not None:
            fused["labels"] = pad(targets, True, padding_value=-100)
        return fused

    def forward(
        self,
        pixels: Tensor,
        ids: Tensor,
        mask: Tensor,
        labels: Tensor | None = None,
        *,
        project: bool = False,
    ) -> Any:
        return self.language_model(**self.fuse(pixels, ids, mask, labels, project=project))

    def generate(self, pixels: Tensor, ids: Tensor, mask: Tensor, **kwargs: Any) -> Tensor:
        fused = self.fuse(pixels, ids, mask, None, project=False)
        return self.language_model.generate(**fused, **kwargs)


def with_lora(lm: nn.Module, spec: Spec) -> nn.Module:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": list(SEVEN), **(spec.lora or {})}
    return get_peft_model(
        lm, LoraConfig(**settings, lora_dropout=0.1, bias="none", task_type="CAUSAL_LM")
    )


def prepare(tokenizer: Any) -> bool:
    """Section 10; returns whether tokens were added."""
    before = len(tokenizer)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            tokenizer.add_special_tokens(
                {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
            )
        else:
            tokenizer.pad_token = tokenizer.eos_token
    extra = [VISION_TOKEN]
    if tokenizer.eos_token != "<|endoftext|>":
        extra.append("<|endoftext|>")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": extra}, replace_extra_special_tokens=False
    )
    return len(tokenizer) > before


def randomise(model: nn.Module, seed: int) -> None:
    """Give every parameter values of its own, so that no swap or omission goes unseen.

    Norms stay near one, and what starts at zero (biases, the second adapter matrix) does not.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * noise.to(parameter.dtype))


def build(spec: Spec, backbones: Any) -> OriginalVLM:
    """Build a model with settled random weights, in evaluation mode."""
    torch.manual_seed(1)
    model = OriginalVLM(
        spec,
        backbones.vision[spec.vision],
        backbones.language[spec.language],
        backbones.tokenizer(spec.language),
    )
    randomise(model, 2)
    if spec.merged:
        model.language_model = model.language_model.merge_and_unload()
    return model.eval()
