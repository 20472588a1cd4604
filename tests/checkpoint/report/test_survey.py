"""``panovlm inspect`` on a tree of runs."""

from __future__ import annotations

import json
import shutil

import pytest

from panovlm.checkpoint.find.locate import SIDECAR
from panovlm.checkpoint.find.tree import checkpoints_below, checkpoints_in, is_tree
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.save import save_checkpoint, strip_metadata
from panovlm.cli.main import main


@pytest.fixture
def inspect(capsys):
    """Run the command; return its exit code and what it printed."""

    def run(*words):
        code = main(["inspect", *map(str, words)])
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def runs(own, tmp_path):
    """A run that is complete, one that lost its description, one that contradicts, one cut."""
    root = tmp_path / "runs"
    for name in ("good", "bare", "wrong", "cut"):
        (root / name / "finetune").mkdir(parents=True)
    good = root / "good" / "finetune"
    save_checkpoint(own(), good / "best.ckpt", stage="finetune")
    strip_metadata(good / "best.ckpt", root / "bare" / "finetune" / "last.ckpt")
    shutil.copy(good / "best.ckpt", root / "wrong" / "finetune")
    document = json.loads((good / SIDECAR).read_text())
    document["recipe"]["models"]["latent_dimension"] = 99
    (root / "wrong" / "finetune" / SIDECAR).write_text(json.dumps(document))
    cut = (good / "best.ckpt").read_bytes()[:2000]
    (root / "cut" / "finetune" / "last.ckpt").write_bytes(cut)
    return root


def test_one_line_for_each(runs, inspect):
    code, said = inspect(runs)
    lines = said.splitlines()
    assert code == 1
    unknown = len(resolve(runs / "bare" / "finetune").assumed)
    assert lines[0] == f"assumed {unknown}   {runs}/bare/finetune/last.ckpt: mlp"
    assert lines[1].startswith(f"broken       {runs}/cut/finetune/last.ckpt is truncated")
    assert lines[2] == f"ok           {runs}/good/finetune/best.ckpt: mlp, stage finetune"
    assert lines[3].startswith(
        f"conflict     {runs}/wrong/finetune/best.ckpt: mlp, models.latent_dimension: 99 (check"
    )
    assert lines[4] == "4 checkpoint(s): 1 assumed, 1 broken, 1 conflict, 1 ok"
    assert len(lines) == 5


def test_as_data(runs, inspect):
    code, said = inspect(runs, "--json")
    found = json.loads(said)
    assert code == 1
    assert found["summary"] == {"assumed": 1, "broken": 1, "conflict": 1, "ok": 1}
    by_run = {entry["checkpoint"].split("/")[-3]: entry for entry in found["checkpoints"]}
    assert "models.overlap_ratio" in by_run["bare"]["assumed"]
    assert "latent_dimension: 99" in by_run["wrong"]["conflicts"][0]
    assert by_run["cut"]["container"] is None and "truncated" in by_run["cut"]["reason"]
    assert by_run["good"]["verdict"] == "ok" and by_run["good"]["resampler_type"] == "mlp"


def test_all_load(runs, inspect):
    """Assumed settings are no failure, as for a single checkpoint."""
    shutil.rmtree(runs / "wrong")
    shutil.rmtree(runs / "cut")
    assert inspect(runs)[0] == 0
    assert inspect(runs / "good" / "finetune", "--recursive")[1].startswith("ok ")


def test_what_is_stated_holds_for_all(runs, inspect):
    code, said = inspect(runs, "--json", "--prefer", "weights", "--set", "models.overlap_ratio=0.5")
    found = {e["checkpoint"].split("/")[-3]: e for e in json.loads(said)["checkpoints"]}
    assert found["wrong"]["verdict"] == "ok" and code == 1
    assert "models.overlap_ratio" not in found["bare"]["assumed"]


def test_a_folder_with_a_checkpoint_is_that_checkpoint(runs, inspect):
    code, said = inspect(runs / "good" / "finetune")
    assert code == 0 and said.endswith("verdict: loads, and every setting is known\n")


def test_a_tree_without_any(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["inspect", "--recursive", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: there is no checkpoint in {tmp_path}")
    assert main(["inspect", str(tmp_path)]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


class TestTree:
    @pytest.fixture
    def tree(self, tmp_path):
        def made(*names):
            for name in names:
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"x")
            return tmp_path

        return made

    def names(self, root):
        return [str(path.relative_to(root)) for path in checkpoints_below(root)]

    def test_what_counts(self, tree):
        root = tree("b/last.ckpt", "a.safetensors", "b/x.pt", "c/d/e/best.ckpt", "notes.txt")
        assert self.names(root) == ["a.safetensors", "b/last.ckpt", "b/x.pt", "c/d/e/best.ckpt"]

    def test_unfinished_hidden_and_companions_do_not(self, tree):
        root = tree(
            ".best.ckpt.01.tmp",
            ".cache/best.ckpt",
            ".out.01.tmp/model.safetensors",
            "run/lora_weights/adapter_model.bin",
            "run/tokenizer/x.bin",
            "run/best.ckpt",
        )
        assert self.names(root) == ["run/best.ckpt"]

    def test_shards_are_parts_of_their_index(self, tree):
        root = tree("m-1.safetensors", "m-2.safetensors", "other.safetensors")
        index = {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
        (root / "m.safetensors.index.json").write_text(json.dumps(index))
        assert self.names(root) == ["m.safetensors.index.json", "other.safetensors"]
        (root / "m.safetensors.index.json").write_text("{")
        assert len(checkpoints_in(root)) == 4  # the index, and each shard, say what is wrong

    def test_folders_that_are_one_checkpoint(self, tree):
        root = tree(
            "cut/__0_0.distcp",
            "fsdp/.metadata",
            "fsdp/__0_0.distcp",
            "zero/latest",
            "zero/global_step3/mp_rank_00_model_states.pt",
            "zz/last.ckpt",
        )
        assert self.names(root) == ["cut", "fsdp", "zero", "zz/last.ckpt"]
        assert self.names(root / "fsdp") == ["."]

    def test_links_to_folders_are_not_followed(self, tree):
        root = tree("run/best.ckpt")
        (root / "run" / "again").symlink_to(root, target_is_directory=True)
        assert self.names(root) == ["run/best.ckpt"]

    def test_is_tree(self, tree):
        root = tree("runs/a/best.ckpt", "empty/notes.txt")
        assert is_tree(root / "runs") and not is_tree(root / "runs" / "a")
        assert not is_tree(root / "empty") and not is_tree(root / "runs" / "a" / "best.ckpt")
