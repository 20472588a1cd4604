"""Rows say how their pictures show the sphere; what they say reaches training and evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from panovlm.cli.main import main
from panovlm.config.image_input import FACES, ImageInput
from panovlm.data.samples import one_per_image, read_tables
from panovlm.errors import DataError
from panovlm.panorama.image import read_panorama
from panovlm.panorama.picture import Picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, shape in (("row.png", (40, 240)), ("part.png", (60, 120)), ("whole.png", (60, 120))):
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "t.csv").write_text(
        "url,instruction,response,image_layout,image_hfov,image_vfov,image_yaw\n"
        "row.png,q,a,cubemap_row,,,\npart.png,q,a,,90,45,-20\nwhole.png,q,a,,,,\n"
    )
    return tmp_path


def test_every_row_speaks_for_its_own_picture(folder: Path) -> None:
    images = [sample.image for sample in read_tables([folder / "t.csv"])]
    assert images == [
        Picture(folder / "row.png", ImageInput(layout="cubemap_row")),
        Picture(folder / "part.png", ImageInput(hfov=90, vfov=45, yaw=-20)),
        folder / "whole.png",
    ]
    assert [read_panorama(image).shape[:2] for image in images] == [
        (80, 160),
        (240, 480),
        (60, 120),
    ]
    assert str(images[1]) == f"{folder}/part.png (hfov=90.0 vfov=45.0 yaw=-20.0)"


def test_json_says_the_same(folder: Path) -> None:
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    said = {"image_hfov": 90, "image_vfov": 45.0, "image_yaw": -20}
    rows = [
        {"image": "row.png", "conversations": talk, "image_layout": "cubemap_row"},
        {"image": "part.png", "conversations": talk, **said},
        {"image": "whole.png", "conversations": talk},
    ]
    (folder / "t.json").write_text(json.dumps(rows))
    same = [[row.image for row in read_tables([folder / name])] for name in ("t.csv", "t.json")]
    assert same[0] == same[1]


def test_settings_hold_for_rows_that_say_nothing(folder: Path) -> None:
    cube = ImageInput(layout="cubemap_row", faces=FACES[::-1])
    samples = read_tables([folder / "t.csv"], image_input=cube)
    assert samples[2].image == Picture(folder / "whole.png", cube)
    assert samples[1].image == Picture(folder / "part.png", ImageInput(hfov=90, vfov=45, yaw=-20))


def test_one_picture_read_in_two_ways_is_two_panoramas(folder: Path) -> None:
    (folder / "two.csv").write_text(
        "url,instruction,response,image_hfov,image_vfov\n"
        "part.png,q,a,90,45\npart.png,q,a,,\npart.png,p,a,90,45\n"
    )
    assert len(one_per_image(read_tables([folder / "two.csv"]))) == 2


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ("cube,,,", "t.csv:2: its picture cannot be as declared: image_layout: expected 'erp', "),
        (",wide,45,", "image_hfov: expected a number, got 'wide'"),
        (",90,,", "hfov and vfov go together"),
        (",90,nan,", "image_vfov: expected a finite number, got 'nan'"),
    ],
)
def test_nonsense_names_row_and_column(folder: Path, cells: str, said: str) -> None:
    head = "url,instruction,response,image_layout,image_hfov,image_vfov,image_yaw\n"
    (folder / "t.csv").write_text(f"{head}whole.png,q,a,{cells}\n")
    with pytest.raises(DataError, match=said):
        read_tables([folder / "t.csv"])


def test_check_reads_pictures_as_declared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(folder / "t.csv")]) == 0
    capsys.readouterr()
    (folder / "bare.csv").write_text("url,instruction,response\nrow.png,q,a\n")
    assert main(["data", "check", str(folder / "bare.csv")]) == 1
    assert "240 x 40 pixels" in capsys.readouterr().out
    assert main(["data", "check", str(folder / "bare.csv"), "--input", "layout=cubemap_row"]) == 0
    capsys.readouterr()
    assert main(["data", "check", str(folder / "bare.csv"), "--input", "layout=cubemap_cross"]) == 1
    assert "square faces" in capsys.readouterr().out


def test_views_are_drawn_of_a_cube(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["views", str(folder / "row.png"), "-o", str(folder / "sheet.png")]
    assert main([*command, "--input", "layout=cubemap_row"]) == 0
    assert (folder / "sheet.png").is_file()
    assert main([*command, "--input", "layout=cubemap_row", "--input", "hfov=90"]) != 0
    assert "hfov and vfov go together" in capsys.readouterr().err
