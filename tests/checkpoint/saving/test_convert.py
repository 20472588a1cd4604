"""``panovlm convert``: every format loads as the same model, or nothing is written."""

from __future__ import annotations

import copy
import json
import resource
import shutil

import lightning
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch.testing import assert_close

from panovlm.checkpoint.find.locate import ADAPTERS, OWN_SIDECAR, SIDECAR, TOKENIZER
from panovlm.checkpoint.formats import read_header
from panovlm.checkpoint.formats.header import ITEMSIZE, RECORD
from panovlm.checkpoint.loading.load import build_empty
from panovlm.checkpoint.resolve import resolve
from panovlm.checkpoint.saving.save import save_checkpoint, strip_metadata
from panovlm.checkpoint.saving.weight_files import Stored, write_safetensors
from panovlm.cli.main import main
from panovlm.config.schema import LoRASettings, Recipe
from panovlm.models.model import PanoramaVLM

FORMATS = {
    "safetensors": "out.safetensors",
    "sharded": "out",
    "huggingface": "out",
    "lightning": "out.ckpt",
}
load = PanoramaVLM.from_checkpoint


@pytest.fixture
def convert(capsys):
    """Run the command; return its exit code and what it printed."""

    def run(*words):
        code = main(["convert", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out + err

    return run


@pytest.fixture
def saved(own, tmp_path):
    """Save a model of today and return the file; ``out`` beside its folder is free."""

    def of(**settings):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        save_checkpoint(own(**settings), folder / "best.ckpt", stage="finetune")
        return folder / "best.ckpt"

    return of


@pytest.fixture
def adapted(own, tmp_path):
    """Save a model with adapters that have an effect; return the file and the model."""

    def of(dtype=torch.float32, **settings):
        model = copy.deepcopy(own(**settings))
        model.add_adapters(LoRASettings(rank=2, alpha=6, target_modules=("q_proj", "up_proj")))
        torch.manual_seed(11)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3)
            parameter.data = parameter.data.to(dtype)
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        save_checkpoint(model.eval(), folder / "best.ckpt")
        return folder / "best.ckpt", model

    return of


def logits(model):
    generator = torch.Generator().manual_seed(8)
    kind = model.projector.linear.weight.dtype
    pixels = torch.randn(2, 3, 3, 16, 16, generator=generator).to(kind)
    ids = torch.tensor([[5, 4, 7], [2, 3, 1]])
    with torch.no_grad():
        return model(pixels, ids).logits


def same(one, other):
    theirs = other.state_dict()
    assert one.state_dict().keys() == theirs.keys()
    for name, tensor in one.state_dict().items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
    assert torch.equal(logits(one), logits(other))


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


class TestFormats:
    @pytest.mark.parametrize("to", FORMATS)
    @pytest.mark.parametrize(
        "settings",
        [{}, {"resampler_type": "bimamba", "overlap_ratio": 0.25, "use_text_projection": True}],
        ids=["defaults", "others"],
    )
    def test_the_same_model(self, to, settings, saved, convert, tmp_path):
        path, out = saved(**settings), tmp_path / FORMATS[to]
        code, said = convert(path, out, "--to", to)
        assert code == 0 and said.startswith(f"{out}: ") and "opened again: all equal" in said
        before, after = load(path, strict=True), load(out, strict=True)
        same(before, after)
        assert after.recipe == before.recipe
        assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()
        found = after.resolution
        assert found.assumed == [] and found.metadata.stage == "finetune"
        assert found.metadata.conversions == ()
        assert main(["diff", str(path), str(out), "--weights"]) == 0

    @pytest.mark.parametrize("to", FORMATS)
    def test_it_needs_nothing_beside_it(self, to, saved, convert, tmp_path):
        """Moved away from everything, without document and source, it is complete."""
        path, out = saved(), tmp_path / FORMATS[to]
        before = load(path)
        convert(path, out, "--to", to)
        away = tmp_path / "elsewhere" / "renamed" / (out.name if out.is_file() else "folder")
        away.parent.mkdir(parents=True)
        shutil.move(out, away)
        shutil.rmtree(path.parent)
        for document in away.rglob(SIDECAR):
            document.unlink()
        after = load(away, strict=True)
        same(before, after)
        assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()

    @pytest.mark.parametrize("to", FORMATS)
    def test_back_again(self, to, saved, convert, tmp_path):
        path = saved()
        convert(path, tmp_path / FORMATS[to], "--to", to)
        assert convert(tmp_path / FORMATS[to], tmp_path / "back.ckpt", "--to", "lightning")[0] == 0
        same(load(path), load(tmp_path / "back.ckpt"))

    @pytest.mark.parametrize("size", ["5GB", "20KB"])
    def test_by_hugging_face(self, size, saved, convert, tmp_path):
        path, out = saved(), tmp_path / "out"
        convert(path, out, "--to", "huggingface", "--max-shard-size", size)
        again = PanoramaVLM.from_pretrained(out)
        same(load(path), again.eval())
        before = load(path).recipe
        for block in Recipe.model_fields.keys() - {"models"}:
            assert getattr(again.recipe, block) == getattr(before, block)
        for name, value in before.models.model_dump().items():
            found = getattr(again.recipe.models, name)
            if name in ("vision_config", "language_config"):  # transformers notes the type there
                assert {**found, "dtype": None} == {**value, "dtype": None}
            elif name != "resampler_config":
                assert found == value, name
        assert again.recipe.models.resampler_config == before.models.resampler_config
        assert (out / "model.safetensors").is_file() == (size == "5GB")
        config = json.loads((out / "config.json").read_text())
        assert config["architectures"] == ["PanoramaVLM"] and config["dtype"] == "float32"

    def test_documents_that_differ_in_one_field_of_a_backbone(self, saved, convert, tmp_path):
        """Labels, which transformers writes as it likes, tell nothing apart."""
        out = tmp_path / "out"
        convert(saved(), out, "--to", "huggingface")
        assert load(out).resolution.notes == []
        config = json.loads((out / "config.json").read_text())
        config["vision_config"] |= {"transformers_version": "4.0", "hidden_act": "relu"}
        (out / "config.json").write_text(json.dumps(config))
        assert load(out).resolution.notes == [
            "models.vision_config.hidden_act: 'gelu_pytorch_tanh' (checkpoint_metadata.json); "
            "config.json says 'relu'"
        ]

    def test_by_lightning(self, saved, convert, tmp_path):
        path, out = saved(), tmp_path / "out.ckpt"
        convert(path, out, "--to", "lightning")

        class Module(lightning.LightningModule):
            def __init__(self, model):
                super().__init__()
                self.model = model

        model = build_empty(load(path).recipe).to_empty(device="cpu")
        again = Module.load_from_checkpoint(out, model=model)
        for name, tensor in load(path).state_dict().items():
            if name != RECORD:  # the other one has no tokenizer to tell of
                assert torch.equal(again.model.state_dict()[name], tensor)

    def test_by_safetensors(self, saved, convert, tmp_path):
        """The format's own library reads the file as it is meant."""
        path, out = saved(), tmp_path / "out.safetensors"
        convert(path, out, "--to", "safetensors")
        state = load(path).state_dict()
        with safe_open(out, "pt") as file:
            assert file.metadata()["format"] == "pt"
            names = [name for name in file.keys() if not name.startswith("panovlm_")]  # noqa: SIM118
            for name in names:
                assert torch.equal(file.get_tensor(name), state[name])
        assert set(state) - set(names) == {"language_model.lm_head.weight"}  # tied

    def test_shards_hold_no_more_than_they_may(self, saved, convert, tmp_path):
        path, out = saved(), tmp_path / "out"
        convert(path, out, "--to", "sharded", "--max-shard-size", "20KB")
        shards = sorted(out.glob("*.safetensors"))
        assert len(shards) > 3 and entries(out)[-1] == TOKENIZER
        for shard in shards:
            tensors = read_header(shard).tensors.values()
            sizes = [torch.Size(i.shape).numel() * ITEMSIZE[i.dtype] for i in tensors]
            assert sum(sizes) <= 20_000 or len(sizes) == 1
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) == {shard.name for shard in shards}

    def test_from_the_original_system(self, build, files, backbones, tmp_path, convert):
        """Aliases, adapters, one backbone of another type: all of it in today's form."""
        model = build(resampler_type="bimamba", vision="clip", language="llama", lora={"r": 4})
        path = files.write_run(tmp_path / "run", model, backbones, dtype=torch.bfloat16)
        out = tmp_path / "out.safetensors"
        assert convert(path, out, "--to", "safetensors")[0] == 0
        before, after = load(path), load(out)
        same(before, after)
        assert after.resolution.assumed == before.resolution.assumed
        assert {p.dtype for p in after.parameters()} == {torch.bfloat16}

    @pytest.mark.parametrize("name", ["checkpoint", "last.ckpt"])
    def test_from_a_distributed_checkpoint(self, name, own, tmp_path, convert, capsys):
        """A folder as FSDP writes it, found in a tree, described, and made one file."""
        model, path = own(), tmp_path / "run" / name
        state = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
        dcp.save({"state_dict": state}, checkpoint_id=path, no_dist=True)
        assert main(["inspect", str(tmp_path)]) == 0
        assert resolve(path).assumed == []
        assert capsys.readouterr().out.startswith(f"ok           {path}:")
        assert main(["add-metadata", "--recursive", str(tmp_path)]) == 0
        beside = path if name == "checkpoint" else path.parent
        assert (beside / SIDECAR).is_file()
        assert main(["add-metadata", "--recursive", str(tmp_path)]) == 0
        assert "1 complete" in capsys.readouterr().out
        out = tmp_path / "out.safetensors"
        assert convert(path, out, "--to", "safetensors")[0] == 0
        for key, tensor in load(out).state_dict().items():
            assert torch.equal(tensor, model.state_dict()[key])
        assert main(["diff", str(path), str(out), "--weights"]) == 0

    def test_what_is_elsewhere_becomes_part_of_it(self, build, files, backbones, tmp_path, convert):
        """A tower that the file leaves to the folder that it names."""
        path = files.write_run(tmp_path / "run", build(), backbones)
        contents = torch.load(path)
        state = contents["state_dict"]
        contents["state_dict"] = {n: t for n, t in state.items() if "backbone.encoder" not in n}
        torch.save(contents, path)
        out, tower = tmp_path / "out.safetensors", str(backbones.vision["siglip"])
        stated = f"models.vision_name={tower}"
        assert convert(path, out, "--to", "safetensors", "--set", stated)[0] == 0
        before, after = load(path, overrides={"models.vision_name": tower}), load(out)
        assert before.resolution.borrowed and not after.resolution.borrowed
        same(before, after)

    def test_one_of_two_copies(self, build, files, backbones, tmp_path, convert):
        path = files.write_run(tmp_path / "run", build(), backbones)
        contents = torch.load(path)
        state = contents["state_dict"]
        averaged = {n: t + 1 if t.is_floating_point() else t for n, t in state.items()}
        torch.save({**contents, "state_dict_ema": averaged}, path)
        out = tmp_path / "out.safetensors"
        code, said = convert(path, out, "--to", "safetensors")
        assert code == 2 and "--weights model or --weights ema" in said
        assert convert(path, out, "--to", "safetensors", "--weights", "ema")[0] == 0
        same(load(path, weights="ema"), load(out))


class TestTypes:
    @pytest.mark.parametrize("to", FORMATS)
    def test_rounding(self, to, saved, convert, tmp_path):
        path, out = saved(), tmp_path / FORMATS[to]
        assert convert(path, out, "--to", to, "--dtype", "bfloat16")[0] == 0
        before, after = load(path), load(out)
        for name, tensor in before.state_dict().items():
            meant = tensor.bfloat16() if tensor.is_floating_point() else tensor
            assert torch.equal(after.state_dict()[name], meant), name
        (done,) = after.resolution.metadata.conversions
        assert (done.dtype, done.merged_lora) == ("bfloat16", None)
        assert done.source == before.resolution.metadata.fingerprint

    def test_several_types_stay_as_they_are(self, saved, convert, tmp_path):
        path = saved()
        contents = torch.load(path)
        state = contents["state_dict"]
        for name in state:
            if name.startswith("model.vision_backbone.encoder"):
                state[name] = state[name].bfloat16()
        torch.save(contents, path)
        code, said = convert(path, tmp_path / "hf", "--to", "huggingface")
        assert code == 2 and "several types (bfloat16, float32)" in said and "--dtype" in said
        assert convert(path, tmp_path / "hf", "--to", "huggingface", "--dtype", "float32")[0] == 0
        assert convert(path, tmp_path / "out", "--to", "sharded")[0] == 0
        after = load(tmp_path / "out").state_dict()
        assert all(torch.equal(after[name.removeprefix("model.")], state[name]) for name in state)

    def test_tied_tensors_stay_one(self, saved, convert, tmp_path):
        path = saved()
        convert(path, tmp_path / "out.ckpt", "--to", "lightning", "--dtype", "float16")
        state = torch.load(tmp_path / "out.ckpt", weights_only=True)["state_dict"]
        one, other = (
            state[f"model.language_model.{name}.weight"]
            for name in ("lm_head", "model.embed_tokens")
        )
        assert one.data_ptr() == other.data_ptr()


class TestAdapters:
    @pytest.mark.parametrize("to", FORMATS)
    def test_they_travel(self, to, adapted, convert, tmp_path):
        path, model = adapted()
        out = tmp_path / FORMATS[to]
        assert convert(path, out, "--to", to)[0] == 0
        same(model, load(out, strict=True))
        if to == "huggingface":
            same(model, PanoramaVLM.from_pretrained(out).eval())

    @pytest.mark.parametrize("to", FORMATS)
    def test_merged(self, to, adapted, convert, tmp_path):
        path, model = adapted()
        out = tmp_path / FORMATS[to]
        assert convert(path, out, "--to", to, "--merge-lora")[0] == 0
        after = load(out, strict=True)
        assert not any("lora" in name for name in after.state_dict())
        assert not after.recipe.lora.use_lora
        assert_close(logits(after), logits(model), rtol=1e-4, atol=1e-5)
        (done,) = after.resolution.metadata.conversions
        assert (done.merged_lora.rank, done.merged_lora.alpha) == (2, 6.0)
        assert done.merged_lora.target_modules == ("q_proj", "up_proj")

    def test_against_the_formula(self, adapted, convert, tmp_path):
        """W + alpha / rank * B A in float64; every other tensor is untouched."""
        path, model = adapted(torch.bfloat16)
        convert(path, tmp_path / "out.safetensors", "--to", "safetensors", "--merge-lora")
        after = load(tmp_path / "out.safetensors").state_dict()
        before = model.state_dict()
        prefix = "language_model.base_model.model."
        for name, tensor in after.items():
            if name == RECORD:  # it tells that there are no adapters now
                continue
            layer = f"{prefix}{name.removeprefix('language_model.').removesuffix('.weight')}"
            if f"{layer}.lora_A.default.weight" not in before:
                plain = name.replace("language_model.", prefix, 1)
                old = before.get(name, before.get(plain, before.get(f"{layer}.base_layer.weight")))
                assert torch.equal(tensor, old), name
                continue
            w, a, b = (
                before[f"{layer}.{part}"].double()
                for part in ("base_layer.weight", "lora_A.default.weight", "lora_B.default.weight")
            )
            exact = w + 6 / 2 * b @ a
            assert tensor.dtype == torch.bfloat16
            # Rounded once: at most half a step of bfloat16 off, and a little of float32.
            assert ((tensor.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all(), name

    def test_nothing_to_merge(self, saved, convert, tmp_path):
        code, said = convert(saved(), tmp_path / "out.ckpt", "--to", "lightning", "--merge-lora")
        assert code == 2 and "no adapters to merge" in said
        assert entries(tmp_path) == ["run"]


class TestAssumed:
    def test_it_stays_assumed(self, saved, convert, tmp_path):
        path = saved()
        strip_metadata(path, path)
        path.with_name(SIDECAR).unlink()
        known = set(load(path).resolution.assumed)
        code, said = convert(path, tmp_path / "out.ckpt", "--to", "lightning")
        assert code == 0 and "assumed as before: models.overlap_ratio" in said
        assert set(load(tmp_path / "out.ckpt").resolution.assumed) == known
        words = [path, tmp_path / "strict.ckpt", "--to", "lightning", "--strict"]
        code, said = convert(*words)
        assert code == 2 and "does not assume them" in said
        assert not (tmp_path / "strict.ckpt").exists()

    def test_what_is_stated_is_recorded(self, saved, convert, tmp_path):
        path = saved()
        convert(path, tmp_path / "out", "--to", "sharded", "--set", "models.overlap_ratio=0.25")
        assert load(tmp_path / "out", strict=True).recipe.models.overlap_ratio == 0.25


class TestRefusals:
    @pytest.mark.parametrize(
        ("to", "name", "told"),
        [
            ("safetensors", "out.ckpt", "the format safetensors is one file; give a name with"),
            ("lightning", "out", "give a name with .ckpt"),
            ("sharded", "run/best.ckpt", "is a file, but the format sharded is a folder"),
            ("huggingface", "run/best.ckpt", "is a file, but"),
            ("lightning", "none/out.ckpt", "the folder"),
            ("sharded", "none/out", "the folder"),
        ],
    )
    def test_names_that_do_not_suit(self, to, name, told, saved, convert, tmp_path):
        path = saved()
        before = path.read_bytes()
        code, said = convert(path, tmp_path / name, "--to", to)
        assert code == 2 and told in said and said.startswith("error: ")
        assert entries(tmp_path) == ["run"] and path.read_bytes() == before

    @pytest.mark.parametrize("to", FORMATS)
    def test_what_is_there_is_not_replaced_unasked(self, to, saved, convert, tmp_path):
        path, out = saved(), tmp_path / FORMATS[to]
        convert(path, out, "--to", to)
        stated = ["--set", "models.overlap_ratio=0.25"]
        code, said = convert(path, out, "--to", to, *stated)
        assert code == 2 and "replace it with --overwrite" in said
        assert load(out).recipe.models.overlap_ratio == 0.5
        assert convert(path, out, "--to", to, "--overwrite", *stated)[0] == 0
        assert load(out).recipe.models.overlap_ratio == 0.25
        assert entries(tmp_path) == sorted([out.name, "run"])

    def test_onto_itself(self, saved, convert):
        path = saved()
        before = load(path)
        assert convert(path, path, "--to", "lightning", "--overwrite")[0] == 0
        same(before, load(path, strict=True))

    def test_beside_what_would_be_taken_for_its_own(self, adapted, convert, tmp_path):
        """In a folder whose document or adapters would change what the result is."""
        path, _ = adapted()
        out = path.parent / "merged.ckpt"
        before = entries(path.parent)
        code, said = convert(path, out, "--to", "lightning", "--set", "models.overlap_ratio=0.25")
        assert code == 2
        assert said.startswith(f"error: {out} was not written, since it would not open there as")
        (path.parent / ADAPTERS).mkdir()
        code, said = convert(path, out, "--to", "lightning", "--merge-lora")
        assert code == 2 and "was not written" in said and ".tmp" not in said
        assert entries(path.parent) == sorted([*before, ADAPTERS])

    def test_a_document_of_an_earlier_file(self, saved, convert, tmp_path):
        own = tmp_path / f"out.ckpt{OWN_SIDECAR}"
        own.write_text("{}")
        code, said = convert(saved(), tmp_path / "out.ckpt", "--to", "lightning")
        assert code == 2 and f"{own} describes another file of that name" in said

    @pytest.mark.parametrize("to", FORMATS)
    def test_a_difference_is_found_and_nothing_is_left(
        self, to, saved, convert, tmp_path, monkeypatch
    ):
        """Bytes that reach the disk differently, as a broken disk or writer would have it."""
        path = saved()

        def wrong(file, weights, metadata):
            name = next(name for name in weights if name != RECORD)
            broken = {**weights, name: Stored(weights[name].tensor + 1, weights[name].dtype)}
            write_safetensors(file, broken, metadata)

        for place in ("export", "weight_files"):
            monkeypatch.setattr(f"panovlm.checkpoint.saving.{place}.write_safetensors", wrong)
        real = torch.save

        def wrong_too(contents, file):
            name = "model.projector.linear.bias"
            contents["state_dict"][name] = contents["state_dict"][name] + 1
            real(contents, file)

        monkeypatch.setattr(torch, "save", wrong_too)
        code, said = convert(path, tmp_path / FORMATS[to], "--to", to)
        assert code == 2 and "came back different from what was written" in said
        assert entries(tmp_path) == ["run"]

    @pytest.mark.parametrize("to", FORMATS)
    def test_disk_full(self, to, saved, convert, tmp_path):
        """No file may grow over 60 kB: one clear line, and what was there is whole."""
        path, out = saved(), tmp_path / FORMATS[to]
        convert(path, out, "--to", to)
        before = load(out)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
        try:
            code, said = convert(path, out, "--to", to, "--overwrite", "--dtype", "float32")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert code == 2 and said.count("\n") == 1
        assert said.startswith(f"error: cannot write {out}: File too large; no half-written")
        same(before, load(out))
        assert entries(tmp_path) == sorted([out.name, "run"])

    @pytest.mark.parametrize("size", ["0", "5XB", "-1", "", "1.5GB", "GB"])
    def test_no_size(self, size, saved, convert, tmp_path):
        code, said = convert(
            saved(), tmp_path / "out", "--to", "sharded", f"--max-shard-size={size}"
        )
        assert code == 2 and "is no size; write 500MB, 5GB or 2GiB" in said

    def test_a_source_that_does_not_load(self, saved, convert, tmp_path):
        path = saved()
        path.write_bytes(path.read_bytes()[:1000])
        code, said = convert(path, tmp_path / "out.ckpt", "--to", "lightning")
        assert code == 2 and "is truncated" in said and entries(tmp_path) == ["run"]
