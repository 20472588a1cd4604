"""The Lightning module of one stage: its loss, its optimizer, what its checkpoints say."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from panovlm.checkpoint.documents.metadata import EMBEDDED, CheckpointMetadata, parse
from panovlm.checkpoint.loading.borrow import NOTHING, LeftOut, put_back
from panovlm.checkpoint.names.keymap import MARKERS
from panovlm.checkpoint.saving.save import embedded_entries, with_probe
from panovlm.config.schema import StageConfig
from panovlm.errors import PanoVLMError
from panovlm.models.language.chat import IGNORED
from panovlm.models.model import PanoramaVLM
from panovlm.models.vision.seen import SeenViews, Views
from panovlm.training.accumulation import ItemMean
from panovlm.training.freeze import rest_frozen
from panovlm.training.losses import OverlapTokens, overlap_loss, overlap_statistics
from panovlm.training.losses.processes import gather_samples, gathers, mean_items
from panovlm.training.optimizer import build_optimizer, build_scheduler

Batch = dict[str, Any]
_PREFIX = "model."
"""What Lightning puts in front of the names of the model's tensors."""


class StageModule(lightning.LightningModule):
    """Trains one stage of a model.

    Args:
        model: what to train; which parameters are trainable is already set.
        stage: canonical stage name; it chooses the loss.
        settings: the stage's settings.
        total_steps: optimizer steps of the stage, for the schedule. It is given, not asked of the
            trainer: that would open the training data before a checkpoint is read, and Lightning
            would then begin an interrupted epoch from its first batch.
        describe: returns the checkpoint document for an epoch, a step and a validation loss.
        left_out: what its checkpoints leave to named models.

    Attributes:
        document: what the checkpoint that was written last says about itself.
    """

    def __init__(
        self,
        model: PanoramaVLM,
        *,
        stage: str,
        settings: StageConfig,
        total_steps: int,
        describe: Callable[[int, int, float | None], CheckpointMetadata],
        left_out: LeftOut = NOTHING,
    ) -> None:
        super().__init__()
        self.model = model
        model.unsettled = ()  # what it is trained with is what it is
        self.stage = stage
        self.settings = settings
        self.total_steps = total_steps
        self.describe = describe
        self.left_out = left_out
        self.last_val_loss: float | None = None
        self._mean = ItemMean(settings.accumulate_grad_batches, settings.batch_size)
        self.document: CheckpointMetadata | None = None
        self._log_interval = 1

    def training_step(self, batch: Batch, _index: int) -> Tensor:
        """Return the stage's loss of one batch, weighed by what the batch holds."""
        loss = self._loss(batch, "train")
        if not torch.isfinite(loss):
            raise PanoVLMError(
                f"the loss of stage {self.stage} became {loss.item()} at step {self.global_step} "
                f"(rows {', '.join(batch['source'])}). Lower lr, lengthen warmup_ratio, or set "
                "environment.precision to 32-true; continue from last.ckpt with --resume."
            )
        self.log("train_loss", loss, prog_bar=True, on_step=True, on_epoch=False)
        items: float = self._items(batch)
        if self.stage == "vision" and gathers(self.model.recipe.models):
            items = mean_items(len(batch["source"]), loss.device)
        return self._mean.weigh(loss, items)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Make the added gradients those of one mean; clipping comes after this."""
        self._mean.finish(self.model.parameters())

    def validation_step(self, batch: Batch, _index: int) -> None:
        """Log the stage's loss of one validation batch; its items count alike over all batches."""
        size = self._items(batch)
        loss = self._loss(batch, "val")
        self.log("val_loss", loss, prog_bar=True, on_epoch=True, batch_size=size, sync_dist=True)

    def on_fit_start(self) -> None:
        """Note which steps are logged; what costs time is measured in these only."""
        self._log_interval = cast(Any, self.trainer).log_every_n_steps

    def on_train_start(self) -> None:
        """Keep frozen components in evaluation mode (a resumed epoch has no start of its own)."""
        rest_frozen(self.model)

    def _loss(self, batch: Batch, split: str) -> Tensor:
        """Return the overlap loss (stage vision) or the language model's loss."""
        if self.stage == "vision":
            return self._overlap_loss(_views(batch), split)
        output = self.model(
            pixel_values=_views(batch),
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
            segments=batch.get("segments"),
            project_text=self.stage == "resampler",
        )
        return output.loss

    def _items(self, batch: Batch) -> int:
        """Return how many items a loss is the mean of: labelled tokens, or panoramas."""
        if self.stage == "vision":
            return len(batch["source"])
        return int((batch["labels"] != IGNORED).sum())

    def _overlap_loss(self, views: Views, split: str) -> Tensor:
        """Return the weighted loss between tokens that show the same; log what it is made of."""
        seen = self.model.seen(views)
        features, grid = self.model.resampled(seen)
        if self.model.vicreg_projector is not None:
            features = self.model.vicreg_projector(features)
        models = self.model.recipe.models
        if gathers(models):
            features = gather_samples(features)
        tokens = OverlapTokens(
            features,
            num_views=seen.num_views,
            has_class_token=self.model.vision_backbone.has_class_token,
            leading_global=self.model.leading_global,
            grid=grid,
            directions=self.model.directions,
        )
        terms = overlap_loss(tokens, models)
        told = {f"{models.overlap_loss}_{name}": terms[name] for name in terms.keys() - {"total"}}
        if split == "val" or (self.global_step + 1) % self._log_interval == 0:
            measured = overlap_statistics(tokens.sides(models))
            told |= {f"overlap_{name}": value for name, value in measured.items()}
        for name, value in told.items():
            size = seen.features.shape[0]
            self.log(f"{split}_{name}", value.detach(), batch_size=size, sync_dist=split == "val")
        return terms["total"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and its schedule over the steps of this stage."""
        optimizer = build_optimizer(self.model, self.settings)
        scheduler = build_scheduler(optimizer, self.settings, self.total_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the file describe itself, and hold the buffers of this moment.

        It is written while training goes on, whose forward passes change buffers.
        """
        about = self.describe(self.current_epoch, self.global_step, self.last_val_loss)
        self.document = with_probe(self.model, about)
        checkpoint.update(embedded_entries(self.model, self.document))
        for name in self.left_out.names:
            del checkpoint["state_dict"][_PREFIX + name]
        state = checkpoint["state_dict"]
        for name, buffer in self.named_buffers(remove_duplicate=False):
            if name in state:
                state[name] = buffer.clone()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Complete the weights of a file that left frozen ones out with those of the model."""
        document = parse(json.loads(checkpoint[EMBEDDED]), "the checkpoint")
        stored = checkpoint["state_dict"]
        state = {name.removeprefix(_PREFIX): tensor for name, tensor in stored.items()}
        for marker in MARKERS:  # the model writes its own
            state.pop(marker, None)
        put_back(self.model, state, document.references, self.left_out)
        checkpoint["state_dict"] = {_PREFIX + name: tensor for name, tensor in state.items()}


def _views(batch: Batch) -> Views:
    """Return the views of a batch, or what the tower makes of them where the loader knows it."""
    if "features" in batch:
        return SeenViews(batch["features"], batch["view_size"])
    return batch["pixel_values"]
