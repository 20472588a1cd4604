"""``panovlm diff``: settings, names, shapes, types, tokenizers, and how far weights lie apart."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from panovlm.checkpoint.find.locate import SIDECAR, TOKENIZER
from panovlm.checkpoint.formats import read_header
from panovlm.checkpoint.report import distance
from panovlm.checkpoint.saving.save import save_checkpoint, strip_metadata
from panovlm.cli.main import main


def mapped_memory():
    """Return the resident memory of mapped files in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))


@pytest.fixture
def diff(capsys):
    """Run the command with ``--json``; return its exit code and the comparison."""

    def run(*words):
        code = main(["diff", *map(str, words), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def saved(own, tmp_path):
    """Save a model of today in a folder of its own, and return the file."""

    def of(name, **settings):
        folder = tmp_path / name
        folder.mkdir()
        save_checkpoint(own(**settings), folder / "best.ckpt")
        return folder / "best.ckpt"

    return of


def changed(path, change):
    """Change the weights in a file."""
    contents = torch.load(path)
    change(contents["state_dict"])
    torch.save(contents, path)


class TestSame:
    def test_a_copy(self, saved, diff, tmp_path):
        one = saved("a")
        other = shutil.copytree(one.parent, tmp_path / "b")
        code, found = diff(one, other)
        assert code == 0 and found["same"] and found["weights"] is None
        code, found = diff(one, other, "--weights")
        assert code == 0 and found["same"]
        parts = "vision_backbone resampler_module vicreg_projector language_model projector"
        assert {d["component"]: d["differ"] for d in found["weights"]} == dict.fromkeys(
            parts.split(), 0
        )

    def test_the_step_alone_is_no_difference(self, build, files, backbones, tmp_path, diff):
        model = build()
        for name in ("last.ckpt", "epoch.ckpt"):
            path = files.write_run(tmp_path, model, backbones, name=name)
        contents = torch.load(path)
        torch.save({**contents, "epoch": 9, "global_step": 99}, path)
        assert diff(tmp_path / "last.ckpt", path, "--weights")[0] == 0

    def test_another_container_and_other_names(self, saved, own, diff, tmp_path):
        """Wrappers, and the table that some formats store twice, are no difference."""
        one = saved("a")
        other = shutil.copytree(one.parent, tmp_path / "b")
        (other / "best.ckpt").unlink()
        state = own().state_dict()
        plain = {f"module.{n}": t for n, t in state.items() if not n.endswith("lm_head.weight")}
        save_file(plain, other / "model.safetensors")
        code, found = diff(one, other, "--weights")
        assert (code, found["only"]) == (0, [[], []])
        assert len(set(found["digests"]["names and shapes"])) == 1

    def test_one_of_two_copies(self, saved, diff, capsys):
        one, other = saved("a"), saved("b")
        contents = torch.load(other)
        state = contents["state_dict"]
        moved = {n: t + 1 if t.is_floating_point() else t for n, t in state.items()}
        torch.save({**contents, "state_dict_ema": moved}, other)
        assert main(["diff", str(one), str(other)]) == 2
        assert "can be read in two ways" in capsys.readouterr().err
        assert diff(other, other, "--copy", "ema", "--weights")[0] == 0


class TestDifferences:
    def test_settings_with_their_sources(self, saved, diff):
        one, other = saved("a"), saved("b", overlap_ratio=0.25, vicreg_loss_weight=0.5)
        code, found = diff(one, other)
        assert code == 1
        source = f"metadata: {SIDECAR}"
        assert found["settings"] == [
            {
                "field": "models.overlap_ratio",
                "values": [0.5, 0.25],
                "sources": [source, source],
                "bearing": True,
            },
            {
                "field": "models.vicreg_loss_weight",
                "values": [1.0, 0.5],
                "sources": [source, source],
                "bearing": False,
            },
        ]

    def test_what_one_side_only_assumes(self, saved, diff):
        one, other = saved("a", overlap_ratio=0.25), saved("b")
        strip_metadata(other, other)
        other.with_name(SIDECAR).unlink()
        _, found = diff(one, other)
        rows = {row["field"]: row for row in found["settings"]}
        assert rows["models.overlap_ratio"]["sources"][1] == "ASSUMED default: default of PanoVLM"
        assert rows["models.language_config.eos_token_id"]["sources"][1] == (
            "default of transformers"
        )
        assert "models.language_config.attention_dropout" not in rows  # the default was stated

    def test_architectures(self, saved, diff):
        one, other = saved("a"), saved("b", resampler_type="bimamba")
        code, found = diff(one, other, "--weights")
        assert code == 1
        rows = {row["field"]: row["values"] for row in found["settings"]}
        assert rows["models.resampler_type"] == ["mlp", "bimamba"]
        assert rows["models.resampler_config.d_state"] == [None, 64]
        prefix = "resampler_module.resampler."
        assert all(name.startswith(prefix) for names in found["only"] for name in names)
        assert f"{prefix}mlp.0.weight" in found["only"][0]
        assert f"{prefix}final_norm.weight" in found["only"][1]

    def test_shapes_and_types(self, saved, diff):
        one, other = saved("a"), saved("b", latent_dimension=24)

        def round_one(state):
            name = "model.vision_backbone.norm.weight"
            state[name] = state[name].bfloat16()

        changed(other, round_one)
        _, found = diff(one, other)
        assert found["shapes"]["projector.linear.weight"] == [[24, 40], [24, 24]]
        assert found["dtypes"] == {"vision_backbone.norm.weight": ["float32", "bfloat16"]}

    def test_tokenizers(self, saved, diff):
        one, other = saved("a"), saved("b")
        for path in (one, other):
            contents = torch.load(path)
            del contents["panovlm_tokenizer"]
            torch.save(contents, path)
        assert diff(one, other)[0] == 0
        (other.parent / TOKENIZER / "chat_template.jinja").write_text("{{ messages }}")
        code, found = diff(one, other)
        assert code == 1 and list(found["tokenizers"]) == ["chat_template.jinja"]
        shutil.rmtree(other.parent / TOKENIZER)
        _, found = diff(one, other)
        assert {second for _, second in found["tokenizers"].values()} == {""}


class TestWeights:
    def test_against_the_formula(self, own, saved, diff):
        """Over all tensors of a component, in float64."""
        one, other = saved("a"), saved("b")
        generator = torch.Generator().manual_seed(3)

        def disturb(state):
            for name in state:
                if "projector.linear" in name:
                    noise = torch.randn(state[name].shape, generator=generator)
                    state[name] = state[name] + 0.1 * noise

        changed(other, disturb)
        code, found = diff(one, other, "--weights")
        assert code == 1
        first = {n: t.double() for n, t in own().state_dict().items() if n.startswith("projector.")}
        second = {
            name.removeprefix("model."): tensor.double()
            for name, tensor in torch.load(other)["state_dict"].items()
        }
        flat = torch.cat([first[n].flatten() for n in first])
        gap = flat - torch.cat([second[n].flatten() for n in first])
        row = next(d for d in found["weights"] if d["component"] == "projector")
        assert row["tensors"] == row["differ"] == 2
        assert row["relative_l2"] == pytest.approx(float(gap.norm() / flat.norm()), rel=1e-12)
        assert row["max_abs"] == pytest.approx(float(gap.abs().max()), rel=1e-12)
        others = [d["differ"] for d in found["weights"] if d["component"] != "projector"]
        assert not any(others)

    def test_one_value_in_the_last_piece_is_seen(self, saved, diff, monkeypatch):
        monkeypatch.setattr(distance, "CHUNK", 7)
        monkeypatch.setattr(distance, "PORTION", 1000)
        one, other = saved("a"), saved("b")
        changed(other, lambda state: state["model.projector.linear.weight"][-1, -1].add_(0.5))
        code, found = diff(one, other, "--weights")
        row = next(d for d in found["weights"] if d["component"] == "projector")
        assert (code, row["differ"], row["max_abs"]) == (1, 1, 0.5)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_numbers_that_are_none(self, value, saved, diff):
        one, other = saved("a"), saved("b")
        set_one = lambda state: state["model.projector.linear.bias"].select(0, 0).fill_(value)  # noqa: E731
        changed(other, set_one)
        code, found = diff(one, other, "--weights")
        row = next(d for d in found["weights"] if d["component"] == "projector")
        assert (code, row["differ"], row["max_abs"]) == (1, 1, str(value))
        changed(one, set_one)
        assert diff(one, other, "--weights")[0] == 0  # two of them in one place are equal

    def test_types_are_compared_by_value(self, saved, diff):
        one, other = saved("a"), saved("b")

        def halve(state):
            name = "model.projector.linear.bias"
            state[name] = state[name].bfloat16()

        changed(other, halve)
        changed(
            one,
            lambda state: state.update(
                {n: t.bfloat16().float() for n, t in state.items() if n.endswith("linear.bias")}
            ),
        )
        code, found = diff(one, other, "--weights")
        assert code == 1 and found["dtypes"]
        assert not any(d["differ"] for d in found["weights"])

    @pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own counts")
    def test_memory_does_not_grow_with_the_file(self, tmp_path, monkeypatch):
        """Portions of 4 MB of two files of 64 MB: mapped pages are given back in between."""
        names = [f"t{i}" for i in range(16)]
        value = torch.ones(1 << 20)
        for side in "ab":
            save_file(
                {name: value * i for i, name in enumerate(names)}, tmp_path / f"{side}.safetensors"
            )
        sides = [
            SimpleNamespace(
                path=path,
                header=read_header(path),
                keys=SimpleNamespace(files={}),
                weights=None,
                adapters=None,
            )
            for path in sorted(tmp_path.glob("*.safetensors"))
        ]
        monkeypatch.setattr(distance, "PORTION", 4 << 20)
        monkeypatch.setattr(distance, "CHUNK", 1 << 16)
        seen = [mapped_memory()]
        add = distance._add

        def watched(*arguments):
            add(*arguments)
            seen.append(mapped_memory())

        monkeypatch.setattr(distance, "_add", watched)
        both = SimpleNamespace(one=sides[0], other=sides[1], shared=names)
        found = distance.distances(both)
        assert sum(d.tensors for d in found) == len(names) == len(seen) - 1
        assert max(seen) - seen[0] < 24 << 10  # of 128 MB


class TestText:
    def test_the_same(self, saved, capsys, tmp_path):
        one = saved("a")
        assert main(["diff", str(one), str(one)]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"A  {one}  (torch)\nB  {one}  (torch)\n\nsettings: no difference\n")
        assert said.endswith("verdict: the same (the values of the weights were not compared)\n")
        assert main(["diff", str(one), str(one), "--weights"]) == 0
        assert capsys.readouterr().out.endswith("verdict: the same (weights too)\n")

    def test_different(self, saved, capsys):
        one, other = saved("a"), saved("b", resampler_type="bimamba", overlap_ratio=0.25)
        assert main(["diff", str(one), str(other), "--weights"]) == 1
        said = capsys.readouterr().out
        assert f"  models.overlap_ratio\n    A  0.5  (metadata: {SIDECAR})\n    B  0.25  (" in said
        assert "stated by B only: " in said and "models.resampler_config.d_state = 64" in said
        assert "    ... and " in said and said.endswith("verdict: different\n")

    def test_one_that_does_not_open(self, saved, capsys, tmp_path):
        assert main(["diff", str(saved("a")), str(tmp_path / "none")]) == 2
        assert "none does not exist" in capsys.readouterr().err


def test_no_torch_without_the_weights(saved):
    code = (
        "import sys\n"
        "from panovlm.cli.main import main\n"
        f"code = main(['diff', {str(saved('a'))!r}, {str(saved('b'))!r}])\n"
        "heavy = sorted({'torch', 'numpy', 'transformers'} & set(sys.modules))\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
