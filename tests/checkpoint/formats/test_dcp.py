"""Distributed checkpoints: torch writes them, and torch's own reader is the reference."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from panovlm.checkpoint.formats import (
    TensorInfo,
    fault_of,
    load_tensors,
    read_attachments,
    read_header,
)
from panovlm.checkpoint.formats.header import ITEMSIZE
from panovlm.checkpoint.formats.split import Box, cover_fault
from panovlm.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore")


def save(saved, folder):
    """Save with torch, as one process."""
    dcp.save(saved, checkpoint_id=folder, no_dist=True)
    return folder


def reference(folder, like):
    """Read with torch, into tensors like these."""
    found = {name: torch.zeros_like(tensor) for name, tensor in like.items()}
    dcp.load(found, checkpoint_id=folder, no_dist=True)
    return found


def bits(tensor):
    return tensor.contiguous().view(torch.uint8) if tensor.dim() else tensor[None].view(torch.uint8)


LINEAR = {"weight": torch.rand(3, 4), "bias": torch.rand(3)}


def test_what_torch_writes(tmp_path):
    saved = {
        "model": {**LINEAR, "count": torch.tensor(2**40), "t": torch.rand(4, 3).T, "_extra": None},
        "optimizer": {"state": {0: {"exp_avg": torch.rand(3)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
        "hyper_parameters": {
            "lr": 0.1,
            "sizes": [1, (2, 3)],
            "blocks": [{"n": 1}, {"n": 2}],
            "optimizer": {"name": "adamw"},
            "by_number": {0: "a"},
            "dtype": torch.bfloat16,
        },
        "panovlm_metadata": "{}",
        "panovlm_tokenizer": {"a/t.json": torch.tensor([1, 2, 3], dtype=torch.uint8)},
        "callbacks": {"x": 1},
    }
    folder = save(saved, tmp_path / "x")
    header, tensors = read_header(folder), load_tensors(folder)
    assert (header.container, header.path) == ("dcp", folder)
    assert header.tensors == {
        "weight": TensorInfo((3, 4), "float32"),
        "bias": TensorInfo((3,), "float32"),
        "count": TensorInfo((), "int64"),
        "t": TensorInfo((3, 4), "float32"),
    }
    assert all(torch.equal(tensors[n], t) for n, t in saved["model"].items() if t is not None)
    assert list(tensors) == list(header.tensors)
    assert header.extras == {
        "model": {"_extra": None},
        "epoch": 3,
        "hyper_parameters": {
            "lr": 0.1,
            "sizes": [1, (2, 3)],
            "blocks": [{"n": 1}, {"n": 2}],
            "optimizer": {"name": "adamw"},
            "by_number": {"0": "a"},
            "dtype": "torch.bfloat16",
        },
        "panovlm_metadata": "{}",
    }
    assert set(header.skipped) == {"optimizer", "callbacks"}
    assert header.attachments == {"a/t.json": TensorInfo((3,), "uint8")}
    assert read_attachments(folder) == {"a/t.json": b"\x01\x02\x03"}


def test_as_lightning_writes_it(tmp_path):
    folder = save(
        {
            "model": {f"model.{n}": t for n, t in LINEAR.items()},
            "optimizer_0": {"state": {}, "lr": 1},
        },
        tmp_path / "last.ckpt",
    )
    rest = {
        "epoch": 1,
        "hyper_parameters": {"lr": 0.1},
        "loops": {"a": 1},
        "panovlm_tokenizer": {"t.json": torch.tensor([7, 8], dtype=torch.uint8)},
    }
    torch.save(rest, folder / "meta.pt")
    header = read_header(folder)
    assert list(header.tensors) == ["model.weight", "model.bias"]
    assert header.extras == {"epoch": 1, "hyper_parameters": {"lr": 0.1}}
    assert {"loops", "optimizer_0"} == set(header.skipped)
    assert header.attachments == {"t.json": TensorInfo((2,), "uint8")}
    assert read_attachments(folder) == {"t.json": b"\x07\x08"}


AVERAGE = {name: tensor + 1 for name, tensor in LINEAR.items()}


@pytest.mark.parametrize(
    ("live", "average", "others"),
    [
        ("state_dict", "state_dict_ema", {}),
        ("model", "ema", {}),
        ("current_model_state", "state_dict", {"averaging_state": {"n": torch.ones(1)}}),
    ],
)
def test_an_average_beside_the_live_weights(tmp_path, live, average, others):
    folder = save({live: {**LINEAR}, average: {**AVERAGE}, **others}, tmp_path / "x")
    for read in (read_header, load_tensors, read_attachments):
        with pytest.raises(CheckpointError, match=f"two ways.*{live}.*{average}.*--weights ema"):
            read(folder)
    assert fault_of(folder) is None
    for weights, entry, state in (("model", live, LINEAR), ("ema", average, AVERAGE)):
        header, tensors = read_header(folder, weights), load_tensors(folder, weights)
        assert (header.entry, header.averaged) == (entry, weights == "ema")
        assert all(torch.equal(tensors[name], tensor) for name, tensor in state.items())
    next(folder.glob("*.distcp")).unlink()
    assert "distcp" in (fault_of(folder) or "")


def test_an_average_alone(tmp_path):
    folder = save({"ema": {**AVERAGE, "decay": torch.ones(1)}}, tmp_path / "x")
    assert read_header(folder).averaged and read_header(folder, "ema").averaged
    with pytest.raises(CheckpointError, match="averaged weights only"):
        read_header(folder, "model")
    counters = {"state_dict": {**LINEAR}, "ema": {"decay": torch.ones(1)}}
    assert not read_header(save(counters, tmp_path / "y")).averaged


def test_an_average_whose_live_weights_are_beside_it(tmp_path):
    """Lightning distributes the state dict only, and the average is there."""
    folder = save({"model": {**AVERAGE}}, tmp_path / "last.ckpt")
    rest = {"current_model_state": {**LINEAR}, "averaging_state": {"n_averaged": torch.ones(1)}}
    torch.save(rest, folder / "meta.pt")
    for weights in (None, "model"):
        with pytest.raises(CheckpointError, match=r"meta\.pt.*--weights ema"):
            read_header(folder, weights)
    assert read_header(folder, "ema").averaged and fault_of(folder) is None
    assert torch.equal(load_tensors(folder, "ema")["bias"], AVERAGE["bias"])


@pytest.mark.parametrize(
    "saved",
    [
        {**LINEAR},
        {"state_dict": {**LINEAR}},
        {"model": {**LINEAR}, "optim": {"state": {"weight": {"step": torch.ones(1)}}}},
        {"app": {"model": {**LINEAR}, "optim": {"state": {"bias": {"m": torch.ones(3)}}}}},
        {"state_dict": {**LINEAR}, "teacher": {**LINEAR}},
        {"model": {**LINEAR}, "optimizer_0": {"state": [{"m": torch.ones(3)}]}, "step": 4},
    ],
)
def test_weights_are_found(tmp_path, saved):
    folder = save(saved, tmp_path / "x")
    assert list(read_header(folder).tensors) == ["weight", "bias"]
    assert torch.equal(load_tensors(folder)["bias"], LINEAR["bias"])


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        (
            {"model": {**LINEAR}, "teacher": {**LINEAR}},
            "2 parts could be the weights: 'model', 'teacher'",
        ),
        ({"w": torch.ones(2), "model": {**LINEAR}}, "'the top level', 'model'"),
        ({"epoch": 3}, "holds no weights"),
        ({"optimizer": {"state": {"m": torch.ones(3)}}}, "holds no weights.*optimizer"),
        ({"model": [torch.ones(2), torch.ones(2)]}, "not named by different texts"),
    ],
)
def test_ambiguous_or_absent_weights_are_an_error(tmp_path, saved, words):
    with pytest.raises(CheckpointError, match=words):
        read_header(save(saved, tmp_path / "x"))


@pytest.mark.parametrize("dtype", [n for n in ITEMSIZE if hasattr(torch, n)])
def test_every_dtype_is_put_together(tmp_path, dcp_writer, dtype):
    raw = torch.randint(0, 2, (6 * ITEMSIZE[dtype],), dtype=torch.uint8)
    tensor = raw.view(getattr(torch, dtype)).reshape(6)
    folder = dcp_writer.write(tmp_path / "x", {"m.w": (tensor, [((0,), (4,)), ((4,), (2,))])})
    ours = load_tensors(folder)["w"]
    assert ours.dtype == tensor.dtype
    assert torch.equal(bits(ours), bits(tensor))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_chunks_of_any_shape(tmp_path_factory, dcp_writer, data):
    folder = tmp_path_factory.mktemp("chunks") / "x"
    tensors, like = {}, {}
    for index in range(3):
        shape = data.draw(st.lists(st.integers(0, 6), max_size=4))
        cuts = [sorted(data.draw(st.lists(st.integers(0, length), max_size=2))) for length in shape]
        tensor = torch.rand(shape)
        parts = dcp_writer.boxes(shape, cuts)
        if len({start for start, _ in parts}) < len(parts):
            parts = [(start, size) for start, size in parts if 0 not in size] or parts[:1]
        tensors[f"m.w{index}"] = (tensor, data.draw(st.permutations(parts)))
        like[f"m.w{index}"] = tensor
    dcp_writer.write(folder, tensors, files=data.draw(st.integers(1, 3)))
    assert all(torch.equal(t, like[n]) for n, t in reference(folder, like).items())
    ours = load_tensors(folder)
    assert {f"m.{name}": tuple(t.shape) for name, t in ours.items()} == {
        name: tuple(t.shape) for name, t in like.items()
    }
    assert all(torch.equal(ours[n.removeprefix("m.")], t) for n, t in like.items())


def test_a_tiling_that_is_no_grid(tmp_path, dcp_writer):
    """Four bars around a middle: no cut goes through."""
    tensor = torch.arange(9.0).reshape(3, 3)
    wheel = [
        ((0, 0), (1, 2)),
        ((0, 2), (2, 1)),
        ((1, 0), (2, 1)),
        ((1, 1), (1, 1)),
        ((2, 1), (1, 2)),
    ]
    folder = dcp_writer.write(tmp_path / "x", {"m.w": (tensor, wheel)})
    assert torch.equal(load_tensors(folder)["w"], tensor)


@settings(max_examples=300, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), max_size=3),
    data=st.data(),
)
def test_covering_equals_counting(shape, data):
    """Count, for every element, the boxes that it lies in."""
    number = st.integers(0, 4)
    drawn = data.draw(
        st.lists(st.tuples(*[st.tuples(number, st.integers(1, 4)) for _ in shape]), max_size=5)
    )
    boxes = [Box(tuple(a for a, _ in box), tuple(n for _, n in box)) for box in drawn]
    count = torch.zeros([*shape], dtype=torch.int64)
    inside = True
    for box in boxes:
        ends = [a + n for a, n in zip(box.start, box.shape, strict=True)]
        inside &= all(end <= length for end, length in zip(ends, shape, strict=True))
        count[tuple(slice(a, end) for a, end in zip(box.start, ends, strict=True))] += 1
    exact = inside and bool((count == 1).all())
    assert (cover_fault(tuple(shape), boxes) == "") == exact


def test_a_tensor_in_one_chunk_is_mapped(tmp_path):
    folder = save({"w": torch.zeros(1000)}, tmp_path / "x")
    before = (folder / "__0_0.distcp").read_bytes()
    load_tensors(folder)["w"].add_(1)
    assert (folder / "__0_0.distcp").read_bytes() == before


def test_describing_reads_no_tensors(tmp_path, monkeypatch):
    from panovlm.checkpoint.formats.source import Source

    folder = save({"w": torch.zeros(500_000)}, tmp_path / "x")
    read, total = Source.read, []

    def counted(self, position, length):
        total.append(length)
        return read(self, position, length)

    monkeypatch.setattr(Source, "read", counted)
    assert read_header(folder).tensors == {"w": TensorInfo((500_000,), "float32")}
    assert sum(total) < 10_000


class Evil:
    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return (os.system, (f"touch {self.canary}",))


def test_code_in_it_never_runs(tmp_path, dcp_writer):
    canary = tmp_path / "canary"

    def poison(metadata):
        metadata.storage_meta = Evil(canary)
        metadata.state_dict_metadata["m.w"].properties.extra = Evil(canary)

    whole = [((0,), (2,))]
    folder = dcp_writer.write(
        tmp_path / "x", {"m.w": (torch.ones(2), whole)}, {"evil": Evil(canary)}, change=poison
    )
    torch.save({"other": Evil(canary)}, folder / "meta.pt")
    assert load_tensors(folder)["w"].tolist() == [1, 1]
    extras = read_header(folder).extras
    assert extras["evil"] == extras["other"] == f"<{os.system.__module__}.system>"
    assert not canary.exists()
    with (folder / ".metadata").open("rb") as file:
        pickle.load(file)
    assert canary.exists()


def test_a_metadata_that_is_code(tmp_path):
    canary = tmp_path / "canary"
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Evil(canary)))
    with pytest.raises(CheckpointError, match="a Metadata was expected"):
        read_header(folder)
    assert not canary.exists()


# Damage ----------------------------------------------------------------------------------------

TWO = [((0, 0), (2, 3)), ((2, 0), (2, 3))]


def at(metadata, start=(0, 0)):
    return metadata.storage_data[MetadataIndex("m.w", start)]


def set_at(start=(0, 0), **fields):
    def change(metadata):
        for name, value in fields.items():
            setattr(at(metadata, start), name, value)

    return change


def set_tensor(**fields):
    def change(metadata):
        stored = metadata.state_dict_metadata["m.w"]
        metadata.state_dict_metadata["m.w"] = dataclasses.replace(stored, **fields)

    return change


def set_metadata(**fields):
    def change(metadata):
        for name, value in fields.items():
            setattr(metadata, name, value)

    return change


def chunks(*parts):
    return set_tensor(chunks=[ChunkStorageMetadata(torch.Size(a), torch.Size(n)) for a, n in parts])


def forget(metadata):
    del metadata.storage_data[MetadataIndex("m.w", (2, 0))]


def same_bytes(metadata):
    metadata.storage_data[MetadataIndex("m.w", (2, 0))] = at(metadata)


def steps(*places):
    return set_metadata(planner_data={"m.w": tuple(places)})


FAULTS = {
    "a gap": (chunks(TWO[0]), "leave a part of it out"),
    "no chunk": (chunks(), "leave a part of it out"),
    "an overlap": (chunks(*TWO, ((1, 0), (2, 3))), "overlaps"),
    "a chunk twice": (chunks(*TWO, TWO[0]), "overlaps"),
    "too far": (chunks(TWO[0], ((2, 0), (3, 3))), "reaches beyond"),
    "negative": (chunks(TWO[0], ((-2, 0), (2, 3))), "no row of sizes"),
    "other axes": (chunks(TWO[0], ((2,), (2,))), "has not the 2 axes"),
    "larger": (set_tensor(size=torch.Size([4, 4])), "leave a part of it out"),
    "smaller": (set_tensor(size=torch.Size([3, 3])), "reaches beyond"),
    "absurd": (set_tensor(size=(2**40, 2**40)), "shape that is not supported"),
    "no size": (set_tensor(size=None), "shape that is not supported"),
    "chunks of another kind": (set_tensor(chunks=3), "are no list"),
    "chunks that are none": (set_tensor(chunks=[3]), "ChunkStorageMetadata was expected"),
    "no dtype": (set_tensor(properties=None), "dtype that is not supported"),
    "a place unknown": (forget, "does not say where the chunk of 'm.w' at .2, 0. lies"),
    "bytes for two": (same_bytes, "share the bytes"),
    "beyond the file": (set_at(length=10**9), "is truncated"),
    "absurd offset": (set_at(offset=2**80), "no row of sizes"),
    "negative offset": (set_at(offset=-1), "no row of sizes"),
    "no offset": (set_at(offset=None), "no row of sizes"),
    "between the items": (set_at(offset=1), "zip archive|truncated|damaged|share the bytes"),
    "a shorter item": (set_at(length=100), "zip archive|is truncated"),
    "elsewhere": (set_at(relative_path="../x/__0_0.distcp"), "plain names"),
    "absolute": (set_at(relative_path="/etc/passwd"), "plain names"),
    "strange name": (set_at(relative_path="a\0b"), "plain names"),
    "surrogate": (set_at(relative_path="\ud800"), "cannot be followed|does not exist"),
    "long name": (set_at(relative_path="x" * 5000), "plain names"),
    "no name": (set_at(relative_path=3), "not named by a text"),
    "the folder": (set_at(relative_path="."), "plain names"),
    "absent file": (set_at(relative_path="__9_0.distcp"), "does not exist"),
    "compressed": (set_at(transform_descriptors=["zstd"]), "extension of DCP"),
    "no tables": (set_metadata(storage_data=None), "no table of the bytes"),
    "no entries": (set_metadata(state_dict_metadata=None), "does not map names"),
    "numbered entries": (set_metadata(state_dict_metadata={3: None}), "does not map names"),
    "strange entries": (set_metadata(state_dict_metadata={"m.w": 3}), "not supported"),
    "strange keys": (set_metadata(storage_data={"m.w": 3}), "MetadataIndex was expected"),
    "places that are none": (set_metadata(planner_data=[1]), "does not map names"),
    "no steps": (steps(), "cannot be followed"),
    "many steps": (steps(*"a" * 40), "cannot be followed"),
    "strange steps": (steps("m", 1.5), "cannot be followed"),
    "huge steps": (steps("m", 2**70), "cannot be followed"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, dcp_writer, fault):
    change, words = FAULTS[fault]
    tensors = {"m.w": (torch.rand(4, 3), TWO)}
    load_tensors(dcp_writer.write(tmp_path / "sound", tensors))
    folder = dcp_writer.write(tmp_path / "x", tensors, change=change)
    with pytest.raises(CheckpointError) as caught:
        load_tensors(folder)
    assert str(folder) in str(caught.value)
    assert re.search(words, str(caught.value).replace(str(tmp_path), ""))  # names the fault too
    assert "\n" not in str(caught.value)


def test_items_that_are_not_what_the_table_tells(tmp_path, dcp_writer):
    """Two chunks of one shape, exchanged with chunks of another tensor."""
    other = torch.rand(4, 3, dtype=torch.float64)
    tensors = {
        "m.w": (torch.rand(4, 3), TWO),
        "m.v": (other, TWO),
        "m.u": (torch.rand(2), [((0,), (2,))]),
    }

    def exchange(one, two):
        def change(metadata):
            stored = metadata.storage_data
            stored[one], stored[two] = stored[two], stored[one]

        return change

    first = MetadataIndex("m.w", (0, 0))
    for index, second in enumerate((MetadataIndex("m.v", (0, 0)), MetadataIndex("m.u", (0,)))):
        folder = dcp_writer.write(tmp_path / f"{index}", tensors, change=exchange(first, second))
        read_header(folder)
        with pytest.raises(CheckpointError, match="was expected"):
            load_tensors(folder)


def test_an_object_in_the_place_of_a_tensor(tmp_path, dcp_writer):
    def exchange(metadata):
        stored = metadata.storage_data
        one, two = MetadataIndex("m.w", (0,)), MetadataIndex("x")
        stored[one], stored[two] = stored[two], stored[one]

    tensors = {"m.w": (torch.ones(2), [((0,), (2,))])}
    folder = dcp_writer.write(tmp_path / "x", tensors, {"x": 3}, change=exchange)
    with pytest.raises(CheckpointError, match="no tensor lies at"):
        load_tensors(folder)


def test_links_out_of_the_folder_are_refused(tmp_path, dcp_writer):
    tensors = {"m.w": (torch.ones(2), [((0,), (2,))])}
    dcp_writer.write(tmp_path / "secret", tensors, files=1)
    folder = dcp_writer.write(tmp_path / "x", tensors, files=1)
    (folder / "__0_0.distcp").unlink()
    (folder / "__0_0.distcp").symlink_to(tmp_path / "secret" / "__0_0.distcp")
    with pytest.raises(CheckpointError, match="outside of its folder"):
        read_header(folder)


def test_the_cache_of_a_model_hub(tmp_path):
    """There, every file is a link into one folder of blobs."""
    folder, blobs = save({**LINEAR}, tmp_path / "x"), tmp_path / "blobs"
    blobs.mkdir()
    for index, path in enumerate(sorted(folder.iterdir())):
        shutil.move(path, blobs / str(index))
        path.symlink_to(blobs / str(index))
    assert torch.equal(load_tensors(folder)["weight"], LINEAR["weight"])


def test_a_companion_that_says_the_same_thing(tmp_path):
    folder = save({"model": {**LINEAR}, "epoch": 3}, tmp_path / "x")
    torch.save({"epoch": 4}, folder / "meta.pt")
    with pytest.raises(CheckpointError, match=r"'epoch' is in meta\.pt and"):
        read_header(folder)


@pytest.mark.parametrize("name", ["../evil", "a//b", "/etc/passwd", "."])
def test_attachments_that_lead_elsewhere(tmp_path, name):
    saved = {"model": {**LINEAR}, "panovlm_tokenizer": {name: torch.ones(2, dtype=torch.uint8)}}
    folder = save(saved, tmp_path / "x")
    with pytest.raises(CheckpointError, match="relative file name"):
        read_header(folder)


@pytest.mark.parametrize(
    "tensor",
    [torch.ones((), dtype=torch.uint8), torch.ones(2, 2, dtype=torch.uint8), torch.ones(3)],
)
def test_attachments_that_are_no_bytes(tmp_path, tensor):
    folder = save({"model": {**LINEAR}, "panovlm_tokenizer": {"f": tensor}}, tmp_path / "x")
    for read in (read_header, read_attachments):
        with pytest.raises(CheckpointError, match="one-dimensional uint8"):
            read(folder)


def test_attachments_whose_bytes_do_not_follow_each_other(tmp_path, dcp_writer):
    class Spread(torch.Tensor):
        """Saved as it lies in memory."""

        def clone(self):
            return self.as_subclass(torch.Tensor)

    tensors = {
        "m.w": (torch.ones(2), [((0,), (2,))]),
        "panovlm_tokenizer.f": (
            torch.arange(6, dtype=torch.uint8).as_subclass(Spread)[::2],
            [((0,), (3,))],
        ),
    }
    folder = dcp_writer.write(tmp_path / "x", tensors)
    read_header(folder)
    with pytest.raises(CheckpointError, match="one-dimensional uint8"):
        read_attachments(folder)


def test_two_entries_of_one_place(tmp_path, dcp_writer):
    tensors = {"m.w": (torch.ones(2), [((0,), (2,))])}
    for index, places in enumerate(({"a": ("x",), "b": ("x",)}, {"a": ("x",), "b": ("x", "y")})):
        folder = dcp_writer.write(tmp_path / f"{index}", tensors, {"a": 1, "b": 2}, steps=places)
        with pytest.raises(CheckpointError, match="claim the place 'x"):
            read_header(folder)


def test_a_large_run(tmp_path, dcp_writer):
    """Thousands of chunks are within the limits, and cost no time to speak of."""
    parts = dcp_writer.boxes((32, 2), [range(1, 32), []])
    tensor = torch.rand(32, 2)
    tensors = {f"m.w{index}": (tensor, parts) for index in range(40)}
    folder = dcp_writer.write(tmp_path / "x", tensors, files=32)
    assert all(torch.equal(found, tensor) for found in load_tensors(folder).values())
