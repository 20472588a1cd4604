"""Published layouts become tables that training reads; what is missing is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from panovlm.cli.data import LAYOUTS as NAMES
from panovlm.cli.main import main
from panovlm.data.csv_rows import QUERY_TEMPLATE
from panovlm.data.published import LAYOUTS
from panovlm.data.samples import read_tables

PANORAMAS = {
    "stanford2d3d": [
        "area_1/pano/rgb/camera_00d10d86db1e435081a837ced388375f_office_24"
        "_frame_equirectangular_domain_rgb.png",
        "area_5a/pano/rgb/camera_1_hallway_2_frame_equirectangular_domain_rgb.png",
    ],
    "zind": [
        "0000/panos/floor_01_partial_room_02_pano_3.jpg",
        "0528/panos/floor_02_partial_room_11_pano_16.jpg",
    ],
    "structured3d": [
        "scene_00000/2D_rendering/485142/panorama/full/rgb_rawlight.png",
        "Structured3D_1/Structured3D/scene_00123/2D_rendering/7/panorama/full/rgb_rawlight.png",
    ],
}
OTHERS = {
    "stanford2d3d": ["area_1/data/rgb/camera_1_office_24_frame_0_domain_rgb.png",
                     "area_1/pano/depth/camera_1_office_24_frame_equirectangular_domain_depth.png"],
    "zind": ["0000/floor_plans/floor_01.png"],
    "structured3d": ["scene_00000/2D_rendering/485142/panorama/empty/rgb_rawlight.png",
                     "scene_00000/2D_rendering/485142/panorama/full/rgb_warmlight.png",
                     "scene_00000/2D_rendering/485142/panorama/full/semantic.png"],
}  # fmt: skip


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (120, 60)).save(path)
    return path


def converted(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["data", "convert", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_knows_every_layout() -> None:
    assert list(NAMES) == list(LAYOUTS)


@pytest.mark.parametrize("layout", PANORAMAS)
def test_panoramas_alone(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [*PANORAMAS[layout], *OTHERS[layout]]:
        picture(tmp_path / "data" / name)
    table = tmp_path / "table.jsonl"
    code, said, _ = converted(capsys, "--from", layout, tmp_path / "data", "-o", table)
    assert (code, said) == (0, f"{table}: 2 rows, 2 images\n")
    samples = read_tables([table])
    assert [sample.image for sample in samples] == sorted(
        tmp_path / "data" / name for name in PANORAMAS[layout]
    )
    assert all(sample.turns == () for sample in samples)
    assert main(["data", "check", str(table)]) == 1  # without a conversation
    assert main(["data", "check", str(table), "--allow", "alone"]) == 0
    capsys.readouterr()


def test_quic360(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "photos" / "1_o.jpg")
    web = "https://live.example.com/65535"
    (tmp_path / "valid.tsv").write_text(
        f"url\tquery\tannotation\n{web}/1_o.jpg\tplants\tMany, \"many\" 'plants'.\n"
        f"{web}/2_o.jpg\tpeople\tNobody.\n{web}/1_o.jpg\tsky\n{web}/1_o.jpg\tsky\tBlue.\n"
    )
    table = tmp_path / "tables" / "valid.jsonl"
    table.parent.mkdir()
    given = ("--from", "quic360", tmp_path / "valid.tsv", "-o", table)
    code, said, _ = converted(capsys, *given, "--images", tmp_path / "photos")
    assert code == 0
    assert said == (
        f"{table}: 2 rows, 1 images\nleft out: 2 rows\n"
        f"  {tmp_path}/valid.tsv:3: {tmp_path}/photos/2_o.jpg does not exist\n"
        f"  {tmp_path}/valid.tsv:4: 2 cells, expected 3\n"
    )
    samples = read_tables([table])
    question = QUERY_TEMPLATE.format(query="plants")
    assert samples[0].turns == ((question, "Many, \"many\" 'plants'."),)
    assert [sample.columns["query"] for sample in samples] == ["plants", "sky"]
    assert json.loads(table.read_text().splitlines()[0])["image"] == "../photos/1_o.jpg"
    code, _, told = converted(capsys, *given)
    assert code == 2
    assert "say with --images" in told


def test_osr_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "scenes" / "a" / "1.jpg")
    (tmp_path / "qa.csv").write_text(
        'image_id,turn_id,question,answer\nscenes/a/1.jpg,0,"Left, or right?",left\n'
        "../1.jpg,0,q,a\n"
    )
    table = tmp_path / "t.jsonl"
    code, said, _ = converted(capsys, "--from", "osr_bench", tmp_path, "-o", table)
    assert code == 0
    assert "qa.csv:3: image_id '../1.jpg' leads out of the folder" in said
    assert [sample.turns for sample in read_tables([table])] == [(("Left, or right?", "left"),)]


def test_nothing_is_written_where_nothing_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "t.jsonl"
    (tmp_path / "x.tsv").write_text("url,query\n")
    for given, message in (
        (("zind", tmp_path), "holds no panorama where zind has them"),
        (("zind", tmp_path / "none"), "is no folder"),
        (("quic360", tmp_path / "x.tsv", "--images", tmp_path), "has no column annotation"),
        (("osr_bench", tmp_path), "qa.csv does not exist"),
        (("zind", tmp_path, "--images", tmp_path), "leave it out"),
    ):
        code, _, told = converted(capsys, "--from", *given, "-o", table)
        assert code == 2, given
        assert message in told
    code, _, told = converted(capsys, "--from", "zind", tmp_path, "-o", tmp_path / "t.csv")
    assert code == 2
    assert ".jsonl" in told
    assert not table.exists()
