"""Bad input ends in one clear message, status 2, no traceback, and nothing written."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from panovlm.checkpoint.saving.save import strip_metadata
from panovlm.cli.main import main

HEADER = "url,instruction,response\n"


@pytest.fixture(scope="module")
def bad(scenes: Path, small_file: Path, trained: Path, tmp_path_factory: object) -> Path:
    """A folder of files that are not what they should be."""
    folder: Path = tmp_path_factory.mktemp("bad")  # type: ignore[attr-defined]
    text = small_file.read_text()
    picture = (scenes / "images" / "train-000001.jpg").read_bytes()
    (folder / "good.jpg").write_bytes(picture)
    (folder / "cut.jpg").write_bytes(picture[:300])
    (folder / "words.jpg").write_text("not a picture")
    files = {
        "config.txt": text,
        "flow.yaml": "models: [1, 2\nfoo: }",
        "list.yaml": "- 1\n",
        "empty.yaml": "",
        "key.yaml": text.replace("latent_dimension", "latent_dimensoin"),
        "type.yaml": text.replace("latent_dimension: 16", "latent_dimension: many"),
        "column.csv": "url,instruction,reply\ngood.jpg,q,a\n",
        "image.csv": HEADER + "good.jpg,q,a\nnone.jpg,q,a\n",
        "cut.csv": HEADER + "good.jpg,q,a\ncut.jpg,q,a\n",
        "words.csv": HEADER + "words.jpg,q,a\n",
        "rows.csv": HEADER,
        "file": "a file where a folder was expected",
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    best = (trained / "best.ckpt").read_bytes()
    for name, content in {"cut": best[: len(best) // 2], "words": b"no checkpoint"}.items():
        (folder / name).mkdir()
        (folder / name / "best.ckpt").write_bytes(content)
    (folder / "nothing").mkdir()
    (folder / "contradiction").mkdir()
    shutil.copy(trained / "best.ckpt", folder / "contradiction")
    metadata = json.loads((trained / "checkpoint_metadata.json").read_text())
    metadata["recipe"]["models"]["resampler_config"]["hidden_dim"] = 999
    (folder / "contradiction" / "checkpoint_metadata.json").write_text(json.dumps(metadata))
    (folder / "bare").mkdir()
    strip_metadata(trained / "best.ckpt", folder / "bare" / "best.ckpt")
    return folder


STAGE = "training.stage_configs.vision"

TRAIN = {
    "no file": (["-c", "{bad}/none.yaml"], r"none\.yaml: no such file"),
    "a folder": (["-c", "{bad}"], r"is a folder"),
    "another suffix": (["-c", "{bad}/config.txt"], r"a configuration is a \.yaml or \.yml file"),
    "no YAML": (["-c", "{bad}/flow.yaml"], r"flow\.yaml:2: is not valid YAML"),
    "a list": (["-c", "{bad}/list.yaml"], r"list\.yaml: expected blocks of keys"),
    "empty": (["-c", "{bad}/empty.yaml"], r"empty\.yaml: is empty"),
    "unknown key": (
        ["-c", "{bad}/key.yaml"],
        r"key\.yaml:\d+: models\.latent_dimensoin: unknown key; did you mean latent_dimension\?",
    ),
    "wrong type": (
        ["-c", "{bad}/type.yaml"],
        r"type\.yaml:\d+: models\.latent_dimension: expected a whole number, got 'many'",
    ),
    "override without =": (["-c{ok}", "foo"], r"'foo' is no override; write key=value"),
    "override of nothing": (
        ["-c{ok}", "training.num_wokers=3"],
        r"training\.num_wokers: unknown key; did you mean num_workers\?",
    ),
    "no table": (["-c{ok}", "data.csv_train=[]"], r"stage vision has no training table; set data"),
    "table missing": (["-c{ok}", "data.csv_train={bad}/none.csv"], r"none\.csv does not exist"),
    "column missing": (
        ["-c{ok}", "data.csv_train={bad}/column.csv"],
        r"column\.csv: column 'response' is missing; the columns are",
    ),
    "table without rows": (["-c{ok}", "data.csv_train={bad}/rows.csv"], r"rows\.csv has no rows"),
    "image missing": (
        ["-c{ok}", "data.csv_train={bad}/image.csv"],
        r"image\.csv:3: .*none\.jpg\n(.|\n)*paths\.data_dir",
    ),
    "image unreadable": (
        ["-c{ok}", "data.csv_train={bad}/cut.csv"],
        r"cut\.csv:3: cannot read the panorama .*cut\.jpg: .*skip_unreadable_images",
    ),
    "no image": (
        ["-c{ok}", "data.csv_val={bad}/words.csv"],
        r"words\.csv:2: cannot read the panorama .*words\.jpg: cannot identify image file",
    ),
    "every image unreadable": (
        ["-c{ok}", "data.csv_train={bad}/words.csv", "data.skip_unreadable_images=true"],
        r"1 of 1 images cannot be read:\n  .*words\.csv:2",
    ),
    "unknown stage": (
        ["-c{ok}", "--stage", "vison"],
        r"--stage vison: the experiment has vision, ",
    ),
    "stage number": (["-c{ok}", "--stage", "4"], r"\(or numbers 1 to 3\)"),
    "stage before missing": (
        ["-c{ok}", "--stage", "finetune"],
        r"stage finetune starts from stage resampler, but .* train that stage first",
    ),
    "no such device": (
        ["-c{ok}", "environment.accelerator=mps"],
        r"cannot train with environment\.accelerator mps, .*precision auto: ",
    ),
    "no such strategy": (["-c{ok}", "environment.strategy=foo"], r"environment\.strategy foo"),
    "runs are a file": (
        ["-c{ok}", "paths.runs_dir={bad}/file"],
        r"the run folder .* cannot be made: Not a directory; choose another paths\.runs_dir",
    ),
    "interval too long": (
        ["-c{ok}", f"{STAGE}.val_check_interval=500"],
        r"vision\.val_check_interval is 500, but an epoch has 3 batches; give",
    ),
    "nothing to start from": (
        ["-c{ok}", "paths.pretrained_dir={bad}/none"],
        r"none does not exist",
    ),
    "nothing to train": (
        [
            "-c{ok}",
            f"{STAGE}.trainable={{resampler: false, vicreg_projector: false, vision_blocks: 0}}",
        ],
        r"this stage trains nothing; switch on a part",
    ),
    "too many blocks": (
        ["-c{ok}", f"{STAGE}.trainable={{vision_blocks: 5}}"],
        r"vision_blocks is 5, but the tower has 2 blocks",
    ),
    "nothing to adapt in a later stage": (
        ["-c{ok}", "training.stage_configs.finetune.lora={target_modules: [foo]}"],
        r"stage finetune: lora\.target_modules: \['foo'\] names no Linear layer of .*; it has",
    ),
    "too many blocks in a later stage": (
        ["-c{ok}", "training.stage_configs.resampler.trainable={vision_blocks: 7}"],
        r"stage resampler: trainable\.vision_blocks is 7, but the tower has 2 blocks",
    ),
    "size beyond any": (
        ["-c{ok}", "--dry-run", "models.resampler_config.hidden_dim=1000000000000000"],
        r"look for a size that is too large below models",
    ),
    "view beyond any": (
        ["-c{ok}", "--dry-run", "image_processing.image_size=[1000000000, 1000000000]"],
        r"look for a size that is too large .* or image_processing",
    ),
    "interval too long in a later stage": (
        ["-c{ok}", "training.stage_configs.resampler.val_check_interval=7"],
        r"resampler\.val_check_interval is 7, but an epoch has 6 batches",
    ),
    "unknown tower": (
        ["-c{ok}", "models.vision_config.model_type=foo"],
        r"models\.vision_config cannot be used: Unrecognized model identifier: foo",
    ),
    "tower not here": (
        ["-c{ok}", "models.vision_config=null"],
        r"vision tower 'small-siglip' cannot be .*models\.vision_name",
    ),
    "scenes over other files": (
        ["-c{ok}", "data.synthetic.root={bad}"],
        r"synthetic scenes cannot be written to .*, which would delete what is there",
    ),
    "package missing": (
        ["-c{ok}", "training.wandb_project=x"],
        r"wandb_project needs the package wandb; install it",
    ),
}

OTHER = {
    "no command": (["nonsense"], r"invalid choice: 'nonsense'.*See `panovlm --help`"),
    "unknown option": (["views", "--none"], r"See `panovlm views --help`"),
    "eval of nothing": (["eval"], r"needs --checkpoint-dir DIR or --checkpoint FILE"),
    "eval missing": (["eval", "--checkpoint", "{bad}/none"], r"none does not exist"),
    "eval cut": (["eval", "--checkpoint-dir", "{bad}/cut"], r"best\.ckpt is truncated"),
    "eval no checkpoint": (
        ["eval", "--checkpoint-dir", "{bad}/words"],
        r"is a text file that starts with 'no checkpoint'",
    ),
    "eval empty folder": (
        ["eval", "--checkpoint-dir", "{bad}/nothing"],
        r"nothing holds no checkpoint \(looked for best\.ckpt, last\.ckpt",
    ),
    "eval contradiction": (
        ["eval", "--checkpoint-dir", "{bad}/contradiction"],
        r"hidden_dim: 999 \(checkpoint_metadata\.json\) against 12 \(weights: (.|\n)*--prefer wei",
    ),
    "eval without tokenizer": (
        ["eval", "--checkpoint-dir", "{bad}/bare", "--csv-input", "{scenes}/test.csv"],
        r"the model has no tokenizer; .*--set models\.tokenizer_name=",
    ),
    "eval without table": (
        ["eval", "--checkpoint-dir", "{bad}/bare"],
        r"nothing says what .* shall be evaluated on; name a table with --csv-input",
    ),
    "eval table missing": (
        ["eval", "--checkpoint", "{trained}", "--csv-input", "none.csv"],
        r"none\.csv does not exist",
    ),
    "eval results into a file": (
        ["eval", "--checkpoint", "{trained}", "--output-dir", "{bad}/file"],
        r"the results cannot be written to .*; choose another folder with --output-dir",
    ),
    "eval of unreadable pictures": (
        ["eval", "--checkpoint", "{trained}", "--csv-input", "{bad}/words.csv"],
        r"none of the 1 questions of .*words\.csv could be asked; .*words\.jpg.* with --data-dir",
    ),
    "eval config missing": (
        ["eval", "--checkpoint", "{trained}", "-c", "none.yaml"],
        r"none\.yaml: no such file",
    ),
    "set without =": (["eval", "--checkpoint", "{trained}", "--set", "foo"], r"FIELD=VALUE was"),
    "set of nothing": (
        ["eval", "--checkpoint", "{trained}", "--set", "models.overlap_rati=1"],
        r"models\.overlap_rati: unknown setting; did you mean models\.overlap_ratio\?",
    ),
    "set to nonsense": (
        ["eval", "--checkpoint", "{trained}", "--set", "models.overlap_ratio=many"],
        r"models\.overlap_ratio cannot be used: .*got 'many'",
    ),
    "set to no YAML": (
        ["eval", "--checkpoint", "{trained}", "--set", "models.overlap_ratio=[1"],
        r"--set models\.overlap_ratio:1: is not valid YAML",
    ),
    "device": (
        ["eval", "--checkpoint", "{trained}", "--device", "gpu7"],
        r"--device gpu7: Invalid device string.*Use cpu, or auto",
    ),
    "dtype": (["eval", "--checkpoint", "{trained}", "--dtype", "int4"], r"choice: 'int4'"),
    "no samples": (
        ["eval", "--checkpoint", "{trained}", "--max-samples", "0"],
        r"--max-samples: '0' is no whole number from 1 on",
    ),
    "scores of nothing": (["eval", "--metrics-only"], r"needs exactly one --csv-input"),
    "scores without predictions": (
        ["eval", "--metrics-only", "--csv-input", "{scenes}/test.csv"],
        r"needs the columns prediction and reference; missing: prediction, reference",
    ),
    "inspect cut": (["inspect", "{bad}/cut"], r"best\.ckpt is truncated"),
    "repair cut": (["add-metadata", "--checkpoint", "{bad}/cut"], r"best\.ckpt is truncated"),
    "repair contradiction": (
        ["add-metadata", "--checkpoint", "{bad}/contradiction"],
        r"hidden_dim: 999",
    ),
    "ask about no picture": (
        ["ask", "{trained}", "{bad}/words.jpg", "what?"],
        r"cannot read the panorama .*words\.jpg",
    ),
    "views of no picture": (["views", "{bad}/none.jpg"], r"none\.jpg: no such file"),
    "views unknown crop": (
        ["views", "{bad}/good.jpg", "--set", "crop_strategy=foo"],
        r"crop_strategy: expected 'e2p', .*got 'foo'",
    ),
    "views into no folder": (
        ["views", "{bad}/good.jpg", "-o", "none/v.png"],
        r"cannot write none/v\.png",
    ),
    "views of no type": (["views", "{bad}/good.jpg", "-o", "v.foo"], r"unknown file ext"),
    "demo into a file": (["demo", "--output", "{bad}/file"], r"file: "),
}

CASES = {f"train: {name}": (["train", *words], said) for name, (words, said) in TRAIN.items()}
CASES |= OTHER


@pytest.mark.parametrize("name", CASES)
def test_one_clear_message(
    name: str,
    bad: Path,
    scenes: Path,
    small_file: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words, said = CASES[name]
    arguments = list(words)
    for place, path in {"bad": bad, "scenes": scenes, "trained": trained, "ok": small_file}.items():
        arguments = [word.replace(f"{{{place}}}", str(path)) for word in arguments]
    monkeypatch.chdir(tmp_path)
    before = tree(bad)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("error: ") == 1
    assert re.search(said, err), err
    assert "Traceback" not in out + err
    assert list(tmp_path.iterdir()) == []
    assert tree(bad) == before


def tree(folder: Path) -> set[tuple[Path, int]]:
    return {(path, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_a_full_accelerator(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has")

    monkeypatch.setattr("panovlm.checkpoint.report.verify.verify", full)
    assert main(["verify", str(trained), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the accelerator's memory is full (CUDA out of memory.")
    assert said.count("\n") == 1 and "--dtype bfloat16" in said
    with pytest.raises(torch.OutOfMemoryError):
        main(["verify", str(trained), "--device", "cpu", "--debug"])


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no such file"):
        main(["train", "--debug", "-c", str(tmp_path / "none.yaml")])


def test_an_image_found_unreadable_while_training(
    scenes: Path, small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damage in the middle of a file shows only when it is decoded."""
    Image.open(scenes / "images" / "train-000001.jpg").save(tmp_path / "hole.png")
    picture = bytearray((tmp_path / "hole.png").read_bytes())
    picture[len(picture) // 2] ^= 255
    (tmp_path / "hole.png").write_bytes(picture)
    (tmp_path / "hole.csv").write_text(HEADER + "hole.png,q,a\n")
    arguments = ["train", "-c", str(small_file), f"data.csv_train={tmp_path}/hole.csv"]
    assert main([*arguments, f"paths.runs_dir={tmp_path}"]) == 2
    assert re.match(r"error: .*hole\.csv:2: cannot read the panorama", capsys.readouterr().err)


def test_unreadable_images_are_left_out_and_listed(
    bad: Path, small_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = tmp_path / "mixed.csv"
    table.write_text(HEADER + "".join(f"{bad}/{n}.jpg,q,a\n" for n in ("good", "cut", "none")))
    changes = [f"data.csv_train={table}", "data.skip_unreadable_images=true"]
    arguments = ["train", "-c", str(small_file), "--stage", "1", f"paths.runs_dir={tmp_path}"]
    assert main([*arguments, *changes]) == 0
    (warning,) = [r.message for r in caplog.records if "left out" in r.message]
    assert warning.startswith("2 of 3 rows are left out, because 2 of 3 images cannot be read:")
    assert "mixed.csv:3: " in warning and "mixed.csv:4: " in warning


def test_disk_full(small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No file may grow over 60 kB, so that no checkpoint can be written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        code = main(["train", "-c", str(small_file), f"paths.runs_dir={tmp_path}"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    err = capsys.readouterr().err
    assert re.match(r"error: cannot write .*last\.ckpt: .*; no half-written file is left", err)
    assert [p for p in tmp_path.rglob("*") if p.suffix in (".ckpt", ".tmp")] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(
    small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    assert main(["train", "-c", str(small_file), f"paths.runs_dir={tmp_path}"]) == 2
    assert "cannot be made: Permission denied; choose another" in capsys.readouterr().err
