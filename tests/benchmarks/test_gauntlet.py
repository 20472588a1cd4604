"""A part of the gauntlet, with PanoVLM alone, and whether its judge would notice a fault."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent.parent
SOME = [
    ("Models, fully described", "BiMamba, expand 1.37 of 33 rounds to 45"),
    ("Models, fully described", "Q-Former, 4 heads"),
    ("Models, fully described", "Gemma 3"),
    ("Models, fully described", "bfloat16"),
    ("Wrapped names", "_forward_module.module.model._fsdp_wrapped_module."),
    ("Wrapped names", "PEFT around the whole model"),
    ("Containers", "sharded .bin"),
    ("Containers", "DCP folder by Lightning (FSDP)"),
    ("Containers", "DeepSpeed ZeRO-3"),
    ("Containers", "Hugging Face folder"),
    ("Descriptions", "none, norm last"),
    ("Descriptions", "none, everything asked for is stated"),
    ("Adapters in a folder of their own", "only one of each pair"),
    ("Descriptions", "overlap missing in it, no probe"),
    ("Descriptions", "of another run, same shapes, none inside"),
    ("Live weights and their average", "in an entry of its own, ema is meant"),
    ("Dialects of Mamba", "Vision Mamba, sum of directions"),
    ("A language model in four or eight bits", "nf4, base by name and digest"),
    ("A language model in four or eight bits", "every document says none"),
    ("Adapters in a folder of their own", "put onto the weights that they were trained on"),
    ("Split checkpoints and backbones by name", "named model has other weights now"),
    ("The original system", "metadata cut off"),
    ("Damaged files", "torch zip, 64 bytes turned"),
    ("Hostile files", "pickle that runs code, among the weights"),
    ("Wrong weights", "integers for weights"),
    ("One wrong value in every description", "heads of the tower"),
]


@pytest.fixture(scope="module")
def gauntlet(tmp_path_factory):
    """The package, with its cases by group and name and a stock of models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        from benchmarks.gauntlet import cases, contestants, judge, stock
        from benchmarks.gauntlet.verdict import Verdict

        every = list(cases.all_cases())
        yield SimpleNamespace(
            judge=judge,
            contestants=contestants,
            Verdict=Verdict,
            every=every,
            cases={(case.group, case.name): case for case in every},
            stock=stock.Stock(tmp_path_factory.mktemp("gauntlet")),
        )


@pytest.mark.parametrize(("group", "name"), SOME)
def test_the_promise(gauntlet, group, name):
    case = gauntlet.cases[group, name]
    outcomes = gauntlet.judge.run(gauntlet.stock, case, gauntlet.contestants.OURS)
    assert gauntlet.judge.faults(case, outcomes) == []


def test_every_case_has_a_name_of_its_own(gauntlet):
    assert len(gauntlet.cases) == len(gauntlet.every) > 150
    assert sum(case.valid for case in gauntlet.every) > 100


@pytest.mark.parametrize(
    ("contestant", "group", "name", "verdict"),
    [
        ("load_state_dict", "Models, fully described", "BiMamba", "right"),
        ("load_state_dict", "Wrapped names", "module. (DDP)", "warned but wrong"),
        ("load_state_dict", "Damaged files", "torch zip, 64 bytes turned", "silently wrong"),
        ("load_state_dict", "Damaged files", "torch zip, first 50%", "clear error"),
        ("load_state_dict", "Containers", "DeepSpeed ZeRO-2", "—"),
        ("transformers", "Containers", "Hugging Face folder, sharded", "right"),
        ("transformers", "One wrong value in every description", "norm order", "silently wrong"),
        ("Lightning", "Containers", "run folder, best and last", "right"),
        ("PEFT", "Adapters in a folder of their own", "that match nothing", "warned but wrong"),
    ],
)
def test_the_judge_sees_what_others_do(gauntlet, contestant, group, name, verdict):
    case, opener = gauntlet.cases[group, name], gauntlet.contestants.PEERS[contestant]
    (outcome,) = gauntlet.judge.run(gauntlet.stock, case, {contestant: opener}).values()
    assert outcome.verdict == verdict, outcome


def test_a_broken_promise_is_reported(gauntlet):
    """Not right, an error of another family, and a valid checkpoint refused."""
    case = gauntlet.cases["Wrong weights", "integers for weights"]
    Verdict, Outcome = gauntlet.Verdict, gauntlet.judge.Outcome
    for verdict in (Verdict.WARNED, Verdict.SILENT, Verdict.UNCLEAR, Verdict.RAN_CODE):
        assert gauntlet.judge.faults(case, {"PanoVLM": Outcome(verdict)})
    refused = {"PanoVLM": Outcome(Verdict.CLEAR)}
    assert gauntlet.judge.faults(case, refused) == []
    assert gauntlet.judge.faults(dataclasses.replace(case, valid=True), refused)


def test_code_that_ran_is_seen(gauntlet, tmp_path):
    case = gauntlet.cases["Hostile files", "pickle that runs code"]

    def careless(made):
        import torch

        torch.load(made.path, weights_only=False)
        raise ValueError

    (outcome,) = gauntlet.judge.run(gauntlet.stock, case, {"careless": careless}).values()
    assert outcome.verdict == "ran code"
