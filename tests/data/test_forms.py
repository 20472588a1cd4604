"""A table says the same in every form: the same texts, pixels and order."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from tests.data.forms import FORMS, write_form, write_table

from panovlm.cli.main import main
from panovlm.data.cache import readable, require_readable
from panovlm.data.samples import read_tables
from panovlm.panorama.image import panorama_size, read_panorama

COUNT = 8


@pytest.mark.parametrize("form", [*FORMS, "parquet, streamed"])
def test_every_form_gives_the_samples_of_the_csv(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = read_tables([write_table(tmp_path, COUNT)])
    table = write_form(form.partition(",")[0], expected, tmp_path / "form")
    blocks = 2 if "streamed" in form else None
    found = read_tables([table], stream_blocks=blocks)
    assert [s.turns for s in found] == [s.turns for s in expected]
    assert [s.columns for s in found] == [s.columns for s in expected]
    assert len({s.source for s in found}) == COUNT
    # As a process that loads gets them.
    there = pickle.loads(pickle.dumps(found))
    assert there == found
    assert len(pickle.dumps(found)) < 6000  # the pictures do not travel
    for own, other in zip(there, expected, strict=True):
        assert np.array_equal(read_panorama(own.image), read_panorama(other.image))
        assert panorama_size(own.image) == (120, 60)
    require_readable(found, 1)
    assert readable(found, 1) == found
    assert main(["data", "check", table]) == 0
    assert f"{COUNT} rows" in capsys.readouterr().out


def test_several_files_by_a_pattern(tmp_path: Path) -> None:
    expected = read_tables([write_table(tmp_path, COUNT)])
    for number in range(3):
        write_form("parquet", expected[number::3], tmp_path / f"form-{number}")
    named = [
        str(tmp_path / pattern) for pattern in ("form-?/*.parquet", "form-{0..2}/train.parquet")
    ]
    texts = [[sample.turns for sample in read_tables([name])] for name in named]
    assert texts[0] == texts[1] == [s.turns for n in range(3) for s in expected[n::3]]
