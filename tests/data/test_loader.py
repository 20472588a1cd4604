"""Stopping anywhere and continuing gives the order of a run that never stopped."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import Dataset

from panovlm.data.loader import Draw, ResumableLoader, SeededSampler
from panovlm.errors import ConfigError, DataError

EPOCHS = 3


class Draws(Dataset[Draw]):
    """Returns what it is asked for."""

    def __init__(self, length: int, broken: int | None = None) -> None:
        self.length = length
        self.broken = broken

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, draw: Draw) -> Draw:
        if draw.number == self.broken:
            raise DataError(f"t.csv:{draw.number}: cannot read it")
        return draw


def loader(length: int = 11, **changes: Any) -> ResumableLoader:
    arguments: dict[str, Any] = {"batch_size": 3, "seed": 5, "shuffle": True, "collate": list}
    broken = changes.pop("broken", None)
    return ResumableLoader(Draws(length, broken), **{**arguments, **changes})


def run(loader: ResumableLoader, first_epoch: int = 0, stop: int | None = None) -> list[Any]:
    """Go through the remaining epochs, or stop after that many batches."""
    seen: list[Any] = []
    for epoch in range(first_epoch, EPOCHS):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            seen.append(batch)
            if len(seen) == stop:
                return seen
    return seen


class TestSampler:
    @given(
        length=st.integers(1, 40),
        world=st.integers(1, 5),
        seed=st.integers(0, 9),
        epoch=st.integers(0, 3),
        shuffle=st.booleans(),
    )
    def test_processes_share_an_epoch_out(
        self, length: int, world: int, seed: int, epoch: int, shuffle: bool
    ) -> None:
        parts: list[list[Draw]] = []
        for rank in range(world):
            sampler = SeededSampler(length, seed=seed, shuffle=shuffle, rank=rank, world_size=world)
            sampler.set_epoch(epoch)
            parts.append(list(sampler))
            assert len(parts[-1]) == len(sampler)
        assert len({len(part) for part in parts}) == 1
        counts = Counter(draw.number for part in parts for draw in part)
        assert set(counts) == set(range(length))
        assert sum(counts.values()) - length < world
        assert {draw.epoch for part in parts for draw in part} == {epoch if shuffle else 0}

    def test_orders_follow_from_seed_and_epoch(self) -> None:
        def order(seed: int, epoch: int) -> list[Draw]:
            sampler = SeededSampler(50, seed=seed, shuffle=True)
            sampler.set_epoch(epoch)
            return list(sampler)

        assert order(1, 2) == order(1, 2)
        numbers = {tuple(d.number for d in order(*key)) for key in [(1, 0), (1, 1), (2, 0), (2, 1)]}
        assert len(numbers) == 4

    def test_unshuffled_order_is_that_of_the_dataset(self) -> None:
        assert [d.number for d in SeededSampler(5, seed=1, shuffle=False)] == [0, 1, 2, 3, 4]


class TestResume:
    @settings(deadline=None, max_examples=40)
    @given(length=st.integers(1, 12), size=st.integers(1, 5), data=st.data())
    def test_every_stopping_point(self, length: int, size: int, data: st.DataObject) -> None:
        whole = run(loader(length, batch_size=size))
        stop = data.draw(st.integers(1, len(whole)))
        stopped = loader(length, batch_size=size)
        before = run(stopped, stop=stop)
        state = stopped.state_dict()
        resumed = loader(length, batch_size=size)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert before + run(resumed, first_epoch=state["epoch"]) == whole

    @pytest.mark.parametrize(("first", "second"), [(2, 2), (2, 0), (0, 2)])
    def test_workers_make_no_difference(self, first: int, second: int) -> None:
        whole = run(loader())
        for stop in (2, 4, 5):  # inside an epoch, at its end, inside the next
            stopped = loader(num_workers=first)
            before = run(stopped, stop=stop)
            resumed = loader(num_workers=second)
            resumed.load_state_dict(stopped.state_dict())
            assert before + run(resumed, stopped.state_dict()["epoch"]) == whole

    def test_several_processes(self) -> None:
        for rank in range(2):
            whole = run(loader(rank=rank, world_size=2, batch_size=2))
            stopped = loader(rank=rank, world_size=2, batch_size=2)
            before = run(stopped, stop=4)
            resumed = loader(rank=rank, world_size=2, batch_size=2)
            resumed.load_state_dict(stopped.state_dict())
            assert before + run(resumed, stopped.state_dict()["epoch"]) == whole

    def test_a_pass_cut_short_does_not_shorten_the_next(self) -> None:
        batches = loader()
        run(batches, stop=2)
        batches.sampler.set_epoch(1)
        assert batches.state_dict()["done"] == 0
        assert len(list(batches)) == len(batches)
        next(iter(batches))
        assert len(list(batches)) == len(batches)

    def test_only_the_first_pass_after_loading_starts_in_the_middle(self) -> None:
        state = {**loader().state_dict(), "epoch": 1, "done": 3}
        resumed = loader()
        resumed.load_state_dict(state)
        assert len(list(resumed)) == len(resumed) - 3
        assert len(list(resumed)) == len(resumed)
        resumed.load_state_dict(state)
        resumed.sampler.set_epoch(2)
        assert len(list(resumed)) == len(resumed)

    def test_the_global_random_state_stays(self) -> None:
        before = torch.random.get_rng_state()
        run(loader(num_workers=0))
        assert torch.equal(before, torch.random.get_rng_state())

    @pytest.mark.parametrize(
        "changes", [{"seed": 6}, {"batch_size": 4}, {"world_size": 2}, {"length": 12}]
    )
    def test_other_settings_are_refused(self, changes: dict[str, int]) -> None:
        state = loader().state_dict()
        name, here = next(iter(changes.items()))
        with pytest.raises(ConfigError, match=f"{name} {state[name]}, this run has {here}"):
            loader(**changes).load_state_dict(state)

    def test_the_state_is_plain(self) -> None:
        state = loader().state_dict()
        assert all(type(value) is int for value in state.values())


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_a_dataset_arrive_without_traceback_text(workers: int) -> None:
    with pytest.raises(DataError) as error:
        run(loader(num_workers=workers, broken=4))
    assert str(error.value) == "t.csv:4: cannot read it"


class Recorder(LightningModule):
    """Notes every draw that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Draw] = []

    def training_step(self, batch: list[Draw], _: int) -> torch.Tensor:
        self.seen += batch
        return self.weight * len(batch)

    def validation_step(self, batch: list[Draw], _: int) -> None:
        assert {draw.epoch for draw in batch} == {0}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Stopped(Exception):
    pass


def stop_at(hook: str, count: int, path: Path) -> Callback:
    """Return a callback that saves and breaks off when the hook is called for that time."""
    calls: list[int] = []

    def stop(_: Callback, trainer: Trainer, *rest: object) -> None:
        calls.append(1)
        if len(calls) == count and not trainer.sanity_checking:
            trainer.save_checkpoint(path)
            raise Stopped

    return type("StopAt", (Callback,), {hook: stop})()


def fit(callbacks: list[Callback], resume: Path | None = None) -> list[Draw]:
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        accumulate_grad_batches=2,
        val_check_interval=2,
        num_sanity_val_steps=0,
        callbacks=callbacks,
    )
    module = Recorder()
    validation = loader(4, shuffle=False)
    try:
        trainer.fit(module, loader(), validation, ckpt_path=resume, weights_only=True)
    except Stopped:
        return module.seen
    assert resume or not callbacks, "the run was to be stopped"
    return module.seen


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("hook", "counts"),
    [
        ("on_train_batch_end", (1, 3, 4, 5, 8, 12)),
        ("on_validation_end", (1, 2, 3)),
        ("on_train_epoch_end", (1, 3)),
    ],
)
def test_lightning_continues_exactly(hook: str, counts: tuple[int, ...], tmp_path: Path) -> None:
    """Four batches per epoch, gradients of two accumulated, validation after every second."""
    whole = fit([])
    assert len(whole) == EPOCHS * 11
    for count in counts:
        before = fit([stop_at(hook, count, tmp_path / "last.ckpt")])
        assert before + fit([], tmp_path / "last.ckpt") == whole
