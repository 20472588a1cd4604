"""Averaged weights beside live ones: chosen explicitly, refused with both readings otherwise."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.callbacks import WeightAveraging
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from panovlm.checkpoint.names.averages import COUNTERS, ENTRIES, SEGMENTS
from panovlm.checkpoint.names.keys import map_keys
from panovlm.checkpoint.resolve import resolve
from panovlm.cli.main import main
from panovlm.errors import CheckpointError
from panovlm.models.model import PanoramaVLM

load = PanoramaVLM.from_checkpoint
NAME = "projector.linear.weight"


@pytest.fixture
def states(build, files):
    """The tensors of a model, and of another with every value moved, without any prefix."""
    live = files.state_dict(build(), prefix="", aliases=False)
    return live, {name: tensor + 1 for name, tensor in live.items()}


def check(path, states, **options) -> None:
    """Both readings give what was stored, and none of them is taken by itself."""
    with pytest.raises(CheckpointError, match=r"two ways.*--weights model or --weights ema"):
        resolve(path)
    with pytest.raises(CheckpointError, match="two ways"):
        load(path)
    for weights, state in zip(("model", "ema"), states, strict=True):
        loaded = load(path, weights=weights, **options)
        assert torch.equal(loaded.state_dict()[NAME], state[NAME])
        found = loaded.state_dict()
        assert all(torch.equal(found[name], state[name]) for name in found)
        told = any("averaged weights" in note for note in loaded.resolution.notes)
        assert told == (weights == "ema")


class TestEntries:
    @pytest.mark.parametrize("entry", sorted(ENTRIES))
    @pytest.mark.parametrize("live", ["state_dict", "model"])
    def test_of_their_own(self, entry, live, states, tmp_path):
        path = tmp_path / "last.ckpt"
        torch.save({live: states[0], entry: states[1], "epoch": 3}, path)
        check(path, states)

    def test_in_an_old_file(self, states, tmp_path):
        path = tmp_path / "last.ckpt"
        saved = {"state_dict": states[0], "ema": states[1]}
        torch.save(saved, path, _use_new_zipfile_serialization=False)
        check(path, states)

    def test_in_a_distributed_checkpoint(self, states, tmp_path):
        path = tmp_path / "last.ckpt"
        saved = {"state_dict": states[0], "ema": states[1]}
        dcp.save(saved, checkpoint_id=path, no_dist=True)
        check(path, states)

    def test_as_lightning_writes_them(self, states, build, tmp_path):
        """WeightAveraging puts the average under state_dict."""
        module = nn.Module()
        module.model = copy.deepcopy(build())
        callback = WeightAveraging()
        callback._average_model = AveragedModel(module)
        with torch.no_grad():
            for parameter in callback._average_model.module.parameters():
                parameter.add_(1)
        contents = {"state_dict": module.state_dict(), "epoch": 1}
        callback.on_save_checkpoint(None, module, contents)
        assert set(contents) >= {"state_dict", "current_model_state", "averaging_state"}
        path = tmp_path / "last.ckpt"
        torch.save(contents, path)
        check(path, states)

    def test_only_averaged_ones(self, states, tmp_path):
        path = tmp_path / "last.ckpt"
        torch.save({"state_dict_ema": states[1]}, path)
        for weights in (None, "ema"):
            assert torch.equal(load(path, weights=weights).state_dict()[NAME], states[1][NAME])
        with pytest.raises(CheckpointError, match=r"averaged weights only.*--weights ema"):
            load(path, weights="model")

    def test_none(self, states, tmp_path):
        path = tmp_path / "last.ckpt"
        torch.save({"state_dict": states[0], "ema": {"decay": torch.ones(())}}, path)
        load(path, weights="model")
        with pytest.raises(CheckpointError, match="holds no averaged weights"):
            load(path, weights="ema")

    def test_several(self, states, tmp_path):
        path = tmp_path / "last.ckpt"
        torch.save({"state_dict": states[0], "ema": states[1], "model_ema": states[1]}, path)
        with pytest.raises(CheckpointError, match="'ema', 'model_ema'"):
            load(path, weights="ema")


class TestNames:
    @pytest.mark.parametrize("segment", [*sorted(SEGMENTS), "ema_model.module", "ema.ema_model"])
    def test_in_front(self, segment, states, tmp_path):
        live, average = states
        state = {f"model.{n}": t for n, t in live.items()}
        state |= {f"{segment}.{n}": t for n, t in average.items()}
        state |= {f"{segment}.{counter}": torch.ones(()) for counter in COUNTERS}
        torch.save({"state_dict": state}, tmp_path / "last.ckpt")
        check(tmp_path / "last.ckpt", states)

    def test_a_live_model_inside_the_averaging_module(self, states, tmp_path):
        live, average = states
        state = {f"ema.online_model.{n}": t for n, t in live.items()}
        state |= {f"ema.ema_model.{n}": t for n, t in average.items()}
        save_file({n: t.clone() for n, t in state.items()}, tmp_path / "model.safetensors")
        check(tmp_path, states)

    def test_buffers_without_dots(self, states, tmp_path):
        """Latent diffusion keeps averages as buffers, whose names have no dots."""
        live, average = states
        state = {f"model.{n}": t for n, t in live.items()}
        state |= {f"model_ema.{n.replace('.', '')}": t for n, t in average.items()}
        state |= {"model_ema.decay": torch.ones(()), "model_ema.num_updates": torch.ones(())}
        torch.save({"state_dict": state}, tmp_path / "last.ckpt")
        check(tmp_path / "last.ckpt", states)

    def test_what_has_no_average_is_live_and_named(self, states, tmp_path):
        live, average = states
        state = {f"model.{n}": t for n, t in live.items()}
        state |= {f"ema.{n}": t for n, t in average.items() if n.startswith("projector")}
        torch.save({"state_dict": state}, tmp_path / "last.ckpt")
        loaded = load(tmp_path, weights="ema")
        found = loaded.state_dict()
        for name in found:
            assert torch.equal(found[name], (average if "projector.linear" in name else live)[name])
        assert f"{len(found) - 2} tensor(s) have no average" in " ".join(loaded.resolution.notes)

    def test_an_averaged_tensor_of_no_component_is_unknown(self):
        found = map_keys({NAME: (2, 2), "ema.critic.weight": (2,)})
        assert found.unknown == ("ema.critic.weight",)

    def test_with_aliases(self, build, files, tmp_path):
        live = files.state_dict(build())
        state = {**live, **{n.replace("model.", "ema.", 1): t + 1 for n, t in live.items()}}
        torch.save({"state_dict": state}, tmp_path / "last.ckpt")
        loaded = load(tmp_path, weights="ema")
        assert torch.equal(loaded.state_dict()[NAME], live[f"model.{NAME}"] + 1)


def test_every_command_takes_the_choice(states, tmp_path, capsys):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": states[0], "state_dict_ema": states[1]}, path)
    assert main(["inspect", str(path)]) == 2
    assert "--weights" in capsys.readouterr().err
    assert main(["inspect", str(path), "--weights", "ema", "--json"]) == 0
    assert "these are averaged weights (EMA)" in json.loads(capsys.readouterr().out)["notes"]
    assert main(["add-metadata", "--checkpoint", str(path)]) == 2
    assert main(["add-metadata", "--checkpoint", str(path), "--weights", "model"]) == 0
    assert (tmp_path / "checkpoint_metadata.json").is_file()
