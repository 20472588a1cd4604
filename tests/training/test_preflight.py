"""Faults of later stages are found with the model of the first one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from panovlm.config.schema import StageConfig
from panovlm.errors import ConfigError
from panovlm.training.dry_run import plan
from panovlm.training.preflight import adapters_of, check_interval, check_later_stages
from panovlm.training.run import train
from panovlm.training.stage import stage_model
from panovlm.training.tables import Tables


def test_adapters_belong_to_finetune_or_to_the_stage_that_asks_for_them(make_settings: Any) -> None:
    shared = make_settings(Path("runs"))
    assert adapters_of(shared, "resampler") is None
    assert adapters_of(shared, "finetune") == shared.lora
    place = "training.stage_configs"
    own = make_settings(Path("runs"), f"{place}.resampler.lora={{rank: 7}}")
    found = adapters_of(own, "resampler")
    assert found is not None and (found.rank, found.alpha) == (7, shared.lora.alpha)
    off = make_settings(Path("runs"), f"{place}.finetune.lora={{use_lora: false}}")
    assert adapters_of(off, "finetune") is None


def test_later_stages_are_checked_and_leave_the_model_as_it_is(make_settings: Any) -> None:
    settings = make_settings(Path("runs"))
    tables = Tables(settings)
    model = stage_model(settings, "vision", tables, None)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    check_later_stages(model, settings, ("resampler", "finetune"), tables)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    wrong = make_settings(Path("runs"), "lora.target_modules=[nothing]")
    check_later_stages(model, wrong, ("resampler",), tables)  # it adds no adapters
    with pytest.raises(ConfigError, match=r"^stage finetune: .*\['nothing'\]"):
        check_later_stages(model, wrong, ("resampler", "finetune"), tables)


@pytest.mark.parametrize(("interval", "fits"), [(1, True), (4, True), (5, False), (0.25, True)])
def test_intervals(interval: float, fits: bool) -> None:
    stage = StageConfig(val_check_interval=interval)
    if fits:
        check_interval("vision", stage, 4)
        return
    with pytest.raises(ConfigError, match=r"vision\.val_check_interval is 5, .*from 1 to 4"):
        check_interval("vision", stage, 4)


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_cpu_offload", "deepspeed_stage_2"])
def test_strategies_that_split_the_model(strategy: str, make_settings: Any, tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "runs", f"environment.strategy={strategy}")
    for begin in (plan, train):
        with pytest.raises(ConfigError, match=rf"strategy is {strategy}, .* Choose auto or ddp"):
            begin(settings)
    assert not (tmp_path / "runs").exists()


def test_a_precision_that_lightning_would_replace(make_settings: Any, tmp_path: Path) -> None:
    settings = make_settings(
        tmp_path / "runs", "environment.precision=16-mixed", "environment.accelerator=cpu"
    )
    with pytest.raises(ConfigError, match=r"16-mixed, which is for CUDA GPUs; .* bf16-mixed or"):
        train(settings)
    assert not (tmp_path / "runs").exists()
