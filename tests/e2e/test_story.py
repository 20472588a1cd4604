"""The whole way through the command line: train, evaluate, lose the metadata, repair."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from panovlm.checkpoint.saving.save import strip_metadata, without_record
from panovlm.cli.main import main

Capture = pytest.CaptureFixture[str]


def evaluate(*arguments: str | Path) -> None:
    assert main(["eval", "--max-new-tokens", "4", *map(str, arguments)]) == 0


def results(folder: Path, kind: str) -> Path:
    (found,) = folder.glob(f"*_{kind}_*")
    return found


@pytest.fixture(scope="module")
def bare(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint without anything that describes it; only the tokenizer stays beside it."""
    folder = tmp_path_factory.mktemp("bare")
    strip_metadata(run_folder / "best.ckpt", folder / "best.ckpt")
    shutil.copytree(run_folder / "tokenizer", folder / "tokenizer")
    return folder


def test_one_model_in_three_states_of_description(
    run_folder: Path, experiment: Path, bare: Path, tmp_path: Path, capsys: Capture
) -> None:
    table = experiment / "scenes" / "test.csv"
    evaluate("--checkpoint-dir", run_folder, "--output-dir", tmp_path / "whole")
    said = capsys.readouterr().out
    assert f"checkpoint: {run_folder / 'best.ckpt'} (best.ckpt comes first)" in said
    assert "assumed" not in said
    assert "6 of 6 samples scored, 0 failed" in said

    # Its adapters were trained with another scale than the usual one, which no weight tells.
    options = ("--csv-input", table, "--set", "lora.alpha=4")
    evaluate("--checkpoint-dir", bare, "--output-dir", tmp_path / "bare", *options)
    said = capsys.readouterr().out
    assert "assumed: models.overlap_ratio = 0.5" in said and "lora.alpha" not in said

    assert main(["eval", "--checkpoint-dir", str(bare), "--strict"]) == 2
    assert "models.overlap_ratio = 0.5" in capsys.readouterr().err

    before = (bare / "best.ckpt").read_bytes()
    repair = ["add-metadata", "--checkpoint", str(bare / "best.ckpt"), "--set", "lora.alpha=4"]
    assert main([*repair, "--dry-run"]) == 0
    assert not (bare / "checkpoint_metadata.json").exists()
    assert main(repair) == 0
    assert f"{bare / 'checkpoint_metadata.json'}: written" in capsys.readouterr().out
    assert (bare / "best.ckpt").read_bytes() == before
    evaluate("--checkpoint-dir", bare, "--output-dir", tmp_path / "mended", "--csv-input", table)

    states = ("whole", "bare", "mended")
    predictions = [results(tmp_path / state, "predictions").read_bytes() for state in states]
    assert predictions[0] == predictions[1] == predictions[2]
    assert predictions[0].count(b"\n") == 7
    metrics = [json.loads(results(tmp_path / s, "metrics").read_text()) for s in states]
    assert metrics[0] == metrics[1] == metrics[2]
    for state in states:
        assert "<html" in results(tmp_path / state, "report").read_text()
        assert not list((tmp_path / state).glob(".*"))


def test_scores_of_predictions_made_before(
    run_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    logged = ("--log-samples", "--log-interval", 2)
    evaluate("--checkpoint-dir", run_folder, "--output-dir", tmp_path, "--max-samples", 3, *logged)
    first = capsys.readouterr().out
    assert "[0] " in first and "[1] " not in first and "[2] " in first
    assert "3 of 3 samples scored" in first
    evaluate("--csv-input", results(tmp_path, "predictions"), "--output-dir", tmp_path / "again")
    again = capsys.readouterr().out
    whole = json.loads(results(tmp_path, "metrics").read_text())
    scored = json.loads(results(tmp_path / "again", "metrics").read_text())
    assert scored == whole
    scores = [line for line in first.splitlines() if line.startswith("  ")]
    assert [line for line in again.splitlines() if line.startswith("  ")] == scores


def test_a_missing_panorama_fails_its_own_question(
    run_folder: Path, experiment: Path, tmp_path: Path, capsys: Capture
) -> None:
    image = experiment / "scenes" / "images" / "test-000001.jpg"
    table = tmp_path / "table.csv"
    table.write_text(f"url,instruction,response\n{image},What?,a\n{tmp_path}/none.jpg,What?,b\n")
    options = ("--csv-input", table, "--output-dir", tmp_path, "--log-samples")
    evaluate("--checkpoint-dir", run_folder, *options)
    said = capsys.readouterr().out
    assert "1 of 2 samples scored, 1 failed" in said
    assert "FAILED: cannot read the panorama" in said
    with results(tmp_path, "predictions").open() as file:
        assert [row["is_error"] for row in csv.DictReader(file)] == ["False", "True"]


def test_inspect(run_folder: Path, capsys: Capture) -> None:
    assert main(["inspect", str(run_folder)]) == 0
    said = capsys.readouterr().out
    assert "trained: stage finetune, epoch 0, step 1, validation loss " in said
    assert said.endswith("verdict: loads, and every setting is known\n")
    assert main(["inspect", str(run_folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fields"]["models.resampler_config.hidden_dim"]["value"] == 12
    assert found["assumed"] == found["conflicts"] == found["unknown_tensors"] == []


def test_verify(run_folder: Path, bare: Path, capsys: Capture) -> None:
    assert main(["verify", str(run_folder), "--strict"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{run_folder / 'best.ckpt'}\n  configuration: passed, every setting is")
    assert "  probe: passed, as in the probe inside best.ckpt: vision tower, " in said
    assert said.endswith("verdict: loads, and computes what it computed when it was saved\n")
    assert main(["verify", str(run_folder / "last.ckpt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checks"][-1]["outcome"] == "passed"
    assert main(["verify", str(bare), "--strict"]) == 1
    assert "verdict: does not load\n" in capsys.readouterr().out
    assert main(["verify", str(run_folder / "none.ckpt")]) == 2


def test_a_setting_that_was_lost_is_solved_for(
    run_folder: Path, experiment: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Nothing but bare weights, tokenizer and probe are left, and somebody gave a wrong scale."""
    contents = torch.load(run_folder / "best.ckpt", weights_only=True)
    kept = {name: contents[name] for name in ("state_dict", "panovlm_tokenizer", "panovlm_probe")}
    kept["state_dict"] = without_record(kept["state_dict"])
    torch.save(kept, tmp_path / "best.ckpt")
    file = str(tmp_path / "best.ckpt")
    assert main(["add-metadata", "--checkpoint", file, "--set", "lora.alpha=8"]) == 0
    image = str(experiment / "scenes" / "images" / "test-000001.jpg")
    assert main(["verify", str(tmp_path)]) == 1
    capsys.readouterr()
    ask = ["ask", str(tmp_path), image, "What is there?", "--set", "generation.max_new_tokens=4"]
    assert main(ask) == 2
    assert "the language model does not compute what it computed" in capsys.readouterr().err
    assert main([*ask, "--no-probe"]) == 0
    capsys.readouterr()
    assert main(["repair", str(tmp_path)]) == 2
    assert "--solve" in capsys.readouterr().err
    solve = ["repair", str(tmp_path), "--solve"]
    assert main(solve) == 0
    said = capsys.readouterr().out
    assert "  language model: computed something else; settled\n    lora.alpha = 4\n" in said
    assert "settled: models.overlap_ratio = 0.5\n" in said
    assert said.endswith("Nothing was written; --write does.\n")
    assert main([*solve, "--write", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["written"] and found["settled"]["lora.alpha"] == 4
    assert main(["verify", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(ask) == 0
    answer = capsys.readouterr().out
    assert main(["ask", str(run_folder), *ask[2:]]) == 0
    assert answer == capsys.readouterr().out


def test_ask_and_views(run_folder: Path, experiment: Path, tmp_path: Path, capsys: Capture) -> None:
    image = str(experiment / "scenes" / "images" / "test-000001.jpg")
    assert main(["ask", str(run_folder), image, "What is there?"]) == 0
    assert 1 <= len(capsys.readouterr().out.split()) <= 4
    sheet = tmp_path / "views.png"
    assert main(["views", image, "-o", str(sheet), "--checkpoint", str(run_folder)]) == 0
    with Image.open(sheet) as picture:
        size = picture.size
    assert capsys.readouterr().out == f"{sheet}: {size[0]}×{size[1]}, anyres_e2p\n"
    assert main(["views", image, "-o", str(sheet), "--set", "crop_strategy=cubemap"]) == 0
    assert capsys.readouterr().out.endswith(", cubemap\n")


def test_an_experiment_that_starts_from_a_checkpoint(
    run_folder: Path, experiment: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Another experiment goes on with the weights, and is found complete afterwards."""
    changes = [
        "experiment.name=further",
        f"paths.runs_dir={tmp_path}",
        f"paths.pretrained_dir={run_folder}",
        "training.stages=[finetune]",
        "training.num_workers=1",
    ]
    arguments = ["train", "-c", str(experiment / "small.yaml"), *changes]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"stage finetune: starts from {run_folder / 'best.ckpt'}" in said
    assert main([*arguments, "--resume"]) == 0
    folder = tmp_path / "further" / "finetune" / "anyres-e2p_bimamba"
    assert capsys.readouterr().out == (
        f"nothing to do: finetune complete\nevaluate with: panovlm eval --checkpoint-dir {folder}\n"
    )
