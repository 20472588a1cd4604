"""The losses of the stages, against formulas written here."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import lightning
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from rich.console import Console
from torch.utils.data import DataLoader

from panovlm.config.schema import Settings
from panovlm.errors import PanoVLMError
from panovlm.models.language.tokenizer import VISION_TOKEN
from panovlm.training.module import StageModule
from panovlm.training.run import train
from panovlm.training.stage import describer, stage_data, stage_model
from panovlm.training.tables import Tables

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning")


def made(settings: Settings, stage: str) -> tuple[StageModule, dict[str, Any]]:
    """Return the module of a stage in evaluation mode, and its first training batch."""
    lightning.seed_everything(1, verbose=False)
    tables = Tables(settings)
    model = stage_model(settings, stage, tables, None)
    rows = tables.of(stage)
    module = StageModule(
        model,
        stage=stage,
        settings=settings.training.stage_configs[stage],
        total_steps=5,
        describe=describer(model, settings, stage, rows, None),
    )
    batch = next(iter(stage_data(settings, stage, model, rows).train_dataloader()))
    return cast(StageModule, module.eval()), batch


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_vision_is_the_overlap_loss(weight: float, make_settings: Any) -> None:
    """Right columns of a view against left columns of the next, the whole picture left out."""
    module, batch = made(
        make_settings(Path("runs"), f"models.vicreg_loss_weight={weight}"), "vision"
    )
    model, pixels = module.model, batch["pixel_values"]
    with torch.no_grad():
        loss = module.training_step(batch, 0)
        assert model.vicreg_projector is not None
        tokens = model.vicreg_projector(model.resampled_features(pixels))
    samples, views = pixels.shape[:2]
    grid = tokens.double().reshape(samples, views, 2, 2, -1)[:, 1:]
    losses = []
    for sample in grid:
        for number in range(views - 1):
            right = sample[number][:, 1:].flatten(0, 1)
            left = sample[(number + 1) % (views - 1)][:, :1].flatten(0, 1)
            invariance = ((right - left) ** 2).mean()
            sides = (right, left)
            variance = sum(
                (1 - (s.var(0, correction=0) + 1e-4).sqrt()).relu().mean() for s in sides
            )
            covariance = sum((s.T.cov().square().sum() - s.var(0).square().sum()) for s in sides)
            width = right.shape[1]
            losses.append(25 * invariance + 25 * variance / 2 + covariance / width / 2)
    assert loss.item() == pytest.approx(weight * (sum(losses) / len(losses)).item(), rel=1e-5)


def text_loss(module: StageModule, batch: dict[str, Any], project: bool) -> float:
    """Cross-entropy of every labelled token, each predicted from the position before it."""
    model = module.model
    assert model.tokenizer is not None
    vision = model.tokenizer.convert_tokens_to_ids(VISION_TOKEN)
    losses: list[torch.Tensor] = []
    rows = zip(batch["pixel_values"], batch["input_ids"], batch["labels"], strict=True)
    for pixels, ids, labels in rows:
        place = ids.tolist().index(vision)
        tokens = model.vision_tokens(pixels[None])
        text = model.get_input_embeddings()(ids[None])
        if project:
            assert model.text_projection is not None
            text = model.text_projection(text)
        embeds = torch.cat((text[:, :place], tokens, text[:, place + 1 :]), 1)
        logits = model.language_model(inputs_embeds=embeds).logits[0].double().log_softmax(-1)
        shift = tokens.shape[1] - 1
        for at, label in enumerate(labels.tolist()):
            if label != -100:
                losses.append(-logits[at + shift - 1, label])
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize("stage", ["resampler", "finetune"])
def test_later_stages_are_the_language_models_loss(stage: str, make_settings: Any) -> None:
    """The text projection, where a model has one, takes part in stage resampler alone."""
    one = [
        f"training.stage_configs.{stage}.{name}=1"
        for name in ("accumulate_grad_batches", "questions_per_sample")
    ]
    settings = make_settings(Path("runs"), "models.use_text_projection=true", *one)
    module, batch = made(settings, stage)
    with torch.no_grad():
        loss = module.training_step(batch, 0).item()
        projected = text_loss(module, batch, project=True)
        plain = text_loss(module, batch, project=False)
    assert projected != pytest.approx(plain, rel=1e-4)
    assert loss == pytest.approx(projected if stage == "resampler" else plain, rel=1e-5)


def test_a_loss_that_is_no_number_stops_the_training(make_settings: Any) -> None:
    module, batch = made(make_settings(Path("runs")), "resampler")
    with torch.no_grad():
        module.model.projector.linear.weight.fill_(float("nan"))
    with pytest.raises(PanoVLMError) as error:
        module.training_step(batch, 0)
    assert "the loss of stage resampler became nan at step 0" in str(error.value)
    assert all(source in str(error.value) for source in batch["source"])


def test_frozen_components_stay_in_evaluation_mode(make_settings: Any) -> None:
    module, _ = made(make_settings(Path("runs")), "resampler")
    module.train()
    module.on_train_start()
    modes = {name: child.training for name, child in module.model.named_children()}
    assert modes == {
        "vision_backbone": False,
        "resampler_module": True,
        "vicreg_projector": False,
        "language_model": True,
        "projector": True,
    }


def first_gradient(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Return the gradient that the first optimizer step of a run sees."""
    found: dict[str, torch.Tensor] = {}

    class StoppedError(Exception):
        pass

    def record(module: StageModule, *_: Any, **__: Any) -> None:
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad.double().clone()
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(StageModule, "configure_gradient_clipping", record)
        with pytest.raises(StoppedError):
            train(settings, console=Console(file=io.StringIO()))
    return found


@pytest.mark.parametrize("accumulate", [3, 5])
@pytest.mark.parametrize("stage", ["vision", "resampler"])
def test_accumulated_gradients_are_those_of_the_big_batch(
    stage: str,
    accumulate: int,
    scenes: Path,
    make_settings: Callable[..., Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Answers differ in length; with 5 to accumulate, the epoch ends after 3 batches."""
    table = tmp_path / "equal.csv"
    images = sorted((scenes / "images").glob("train-*.jpg"))[:6]
    rows = [f"{image},What is there?,{'no ' * 3**n}thing" for n, image in enumerate(images)]
    table.write_text("\n".join(["url,instruction,response", *rows]) + "\n")

    def gradient(batch_size: int, accumulate: int) -> dict[str, torch.Tensor]:
        return first_gradient(
            make_settings(
                tmp_path,
                f"training.stages=[{stage}]",
                f"data.csv_train={table}",
                "models.resampler_config.dropout=0",
                "models.vision_config.attention_dropout=0",
                f"training.stage_configs.{stage}.batch_size={batch_size}",
                f"training.stage_configs.{stage}.accumulate_grad_batches={accumulate}",
                f"training.stage_configs.{stage}.val_check_interval=1.0",
            ),
            monkeypatch,
        )

    big, small = gradient(6, 1), gradient(2, accumulate)
    assert big.keys() == small.keys() and len(big) > 20
    scale = max(gradient.abs().max().item() for gradient in big.values())
    for name, expected in big.items():
        assert torch.allclose(small[name], expected, rtol=1e-3, atol=1e-6 * scale), name


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_clips_gradients_of_a_fused_optimizer(
    precision: Any, make_settings: Any
) -> None:
    """A step of Lightning's own loop on a CPU, a loss scaler in it for float16."""
    settings = make_settings(
        Path("runs"), "training.stage_configs.finetune.gradient_clip=1e-3", "data.csv_val=[]"
    )
    module, batch = made(settings, "finetune")
    norms: list[float] = []

    class Watch(lightning.Callback):
        def on_before_zero_grad(self, *_: object) -> None:
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            if gradients:
                norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    before = {name: weight.clone() for name, weight in module.named_parameters()}
    trainer = lightning.Trainer(
        accelerator="cpu",
        plugins=[MixedPrecision(precision, "cpu")],
        gradient_clip_val=1e-3,
        max_steps=2,
        callbacks=[Watch()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module.train(), DataLoader([batch] * 4, batch_size=None))
    assert trainer.optimizers[0].defaults["fused"]
    assert norms and max(norms) <= 1.001e-3
    assert any(not torch.equal(before[name], weight) for name, weight in module.named_parameters())
