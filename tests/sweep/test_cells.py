"""Which cells a file of a sweep means, and what is said of one that means none."""

from __future__ import annotations

from pathlib import Path

import pytest

from panovlm.config.load import load_settings
from panovlm.config.schema import Settings
from panovlm.errors import ConfigError
from panovlm.sweep.cells import check_cells, named, read_cells, settings_digest
from panovlm.sweep.schema import read_sweep

SMALL = Path(__file__).parent.parent / "small.yaml"

FACTORS = """
factors:
  resampler:
    bimamba: {}
    mlp: {models.resampler_type: mlp}
  positions:
    none: {models.use_projection_positional_encoding: false}
    directions: {models: {pe_type: directions}}
"""


def cells(folder: Path, text: str, *overrides: str):
    file = folder / "sweep.yaml"
    file.write_text(text)
    (folder / "base.yaml").write_text(SMALL.read_text())
    return read_cells(file, read_sweep(file), overrides)


def test_one_factor_at_a_time(tmp_path: Path) -> None:
    sweep = cells(tmp_path, f"base: {{config: base.yaml}}\nseeds: [3]\n{FACTORS}")
    assert [named(choice) for choice in sweep.digests] == [
        "base",
        "resampler=bimamba",
        "resampler=mlp",
        "positions=none",
        "positions=directions",
    ]
    # The base's own value is no further training.
    assert [cell.name for cell in sweep.cells] == [
        "base, seed 3",
        "resampler=mlp, seed 3",
        "positions=none, seed 3",
        "positions=directions, seed 3",
    ]
    assert sweep.digests[()] == sweep.digests[(("resampler", "bimamba"),)]
    assert sweep.cells[1].settings.models.resampler_type == "mlp"
    assert sweep.cells[3].settings == load_settings(SMALL, ["models.pe_type=directions"])


def test_every_combination(tmp_path: Path) -> None:
    sweep = cells(tmp_path, f"base: {{config: base.yaml}}\nmode: grid\nseeds: [3, 4]\n{FACTORS}")
    assert [named(choice) for choice in sweep.digests] == [
        "base",
        "resampler=bimamba, positions=none",
        "resampler=bimamba, positions=directions",
        "resampler=mlp, positions=none",
        "resampler=mlp, positions=directions",
    ]
    assert len(sweep.cells) == 10
    last = sweep.cells[-1].settings
    assert (last.models.resampler_type, last.models.pe_type) == ("mlp", "directions")
    assert last.environment.seed == 4


def test_further_seeds_are_the_bases_alone(tmp_path: Path) -> None:
    text = f"base: {{config: base.yaml}}\nseeds: [3]\nbase_seeds: [5, 6]\n{FACTORS}"
    sweep = cells(tmp_path, text)
    assert [list(seeds) for seeds in sweep.digests.values()] == [[3, 5, 6], [3], [3], [3], [3]]
    assert len({cell.digest for cell in sweep.cells}) == len(sweep.cells) == 6


def test_what_is_laid_over_what(tmp_path: Path) -> None:
    text = f"base: {{config: base.yaml, set: {{models.pe_dropout: 0.1}}}}\n{FACTORS}"
    sweep = cells(tmp_path, text, "models.pe_dropout=0.2", "models.pe_type=columns")
    assert {cell.settings.models.pe_dropout for cell in sweep.cells} == {0.2}
    assert sweep.cells[-1].settings.models.pe_type == "directions"


def test_the_digest_is_of_what_decides_the_result() -> None:
    settings = load_settings(SMALL)

    def changed(override: str) -> str:
        return settings_digest(load_settings(SMALL, [override]))

    same = settings_digest(settings)
    assert changed("paths.runs_dir=elsewhere") == same
    assert changed("experiment.name=another") == same
    for override in (
        "environment.seed=4",
        "paths.data_dir=elsewhere",
        "models.pe_temperature=100",
        "data.synthetic.test_scenes=4",
        "training.stage_configs.resampler.lr=0.1",
        "generation.max_new_tokens=3",
    ):
        assert changed(override) != same, override
    again = Settings.model_validate(settings.model_dump(mode="json"))
    assert settings_digest(again) == same


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = """
base: {config: base.yaml}
factors:
  resampler:
    none at all: {models.resampler_type: nothing}
    mlp: {models.resampler_type: mlp, models.resampler_config.width: 3}
"""
    with pytest.raises(ConfigError) as caught:
        cells(tmp_path, text)
    first, second = str(caught.value).splitlines()
    assert first.startswith(
        f"{tmp_path / 'sweep.yaml'}, resampler=none at all: models.resampler_type"
    )
    assert "unknown key" in second and "resampler=mlp: models.resampler_config.width" in second


def test_a_mistake_of_the_base_is_told_once(tmp_path: Path) -> None:
    text = f"base: {{config: base.yaml, set: {{models.pe_type: round}}}}\n{FACTORS}"
    with pytest.raises(ConfigError, match=r"sweep\.yaml, base: models\.pe_type") as caught:
        cells(tmp_path, text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("factors: {a: {b: {}}}", "base: is required"),
        ("base: {config: base.yaml}", "factors: is required"),
        ("base: {config: base.yaml}\nfactors: {a: {b: 3}}", "factors.a.b: expected a block"),
        ("base: {config: base.yaml}\nfactors: {a: {}}\nmode: all", "expected 'one_factor' or"),
        ("base: {config: none.yaml}\nfactors: {a: {}}", "none.yaml"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        cells(tmp_path, text)


def test_models_that_cannot_be_built_are_found_before_training(tmp_path: Path) -> None:
    text = """
base: {config: base.yaml}
factors:
  resampler:
    identity: {models.resampler_type: identity, models.latent_dimension: 12}
    pool: {models.resampler_type: avg_pool, models.resampler_config: {window: 3}}
    mlp: {models.resampler_type: mlp}
"""
    sweep = cells(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        check_cells(sweep.cells)
    told = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in told] == ["resampler=identity", "resampler=pool"]
