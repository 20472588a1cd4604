"""What the words on the command line mean."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from panovlm.cli.main import COMMANDS, main
from panovlm.cli.options import add_loading_options, overrides, positive
from panovlm.cli.train import chosen_stages, effective_config
from panovlm.config.load import load_settings
from panovlm.errors import ConfigError

STAGES = ("vision", "resampler", "finetune")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, STAGES),
        ("all", STAGES),
        ("2", ("resampler",)),
        ("finetune,1", ("vision", "finetune")),
        ("instruction_tuning , vision_pretrain", ("vision", "finetune")),
        ("resampler,2,resampler_training", ("resampler",)),
    ],
)
def test_chosen_stages(text: str | None, expected: tuple[str, ...]) -> None:
    assert chosen_stages(text, STAGES) == expected


@pytest.mark.parametrize("text", ["", "0", "-1", "1,,2", "vision;finetune", "generate", "\uff11"])
def test_no_such_stage(text: str) -> None:
    with pytest.raises(ConfigError, match=r"the experiment has vision, resampler, finetune"):
        chosen_stages(text, STAGES)


def test_overrides_are_yaml() -> None:
    pairs = ["a.b=1e-3", "a.c= [1, 2]", "d=x=y", "e=", "f=null", "g=true"]
    assert overrides(pairs) == {
        "a.b": 1e-3,
        "a.c": [1, 2],
        "d": "x=y",
        "e": None,
        "f": None,
        "g": True,
    }


class TestPrefer:
    def read(self, *words: str) -> object:
        parser = argparse.ArgumentParser(exit_on_error=False)
        add_loading_options(parser)
        return parser.parse_args([w for word in words for w in ("--prefer", word)]).prefer

    def test_for_all_or_by_field(self) -> None:
        assert self.read() is None
        assert self.read("weights") == "weights"
        assert self.read("a.b=weights", "c=metadata") == {"a.b": "weights", "c": "metadata"}

    @pytest.mark.parametrize("words", [["x"], ["=weights"], ["a=b"], ["weights", "a=weights"]])
    def test_what_says_neither(self, words: list[str]) -> None:
        with pytest.raises(SystemExit):
            self.read(*words)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "many", "²", "\uff11\uff12"])
def test_positive(text: str) -> None:
    assert positive("12") == 12
    with pytest.raises(argparse.ArgumentTypeError):
        positive(text)


def test_the_written_configuration_gives_the_same_settings(
    small_file: Path, tmp_path: Path
) -> None:
    """The YAML beside a checkpoint says what was trained, overrides included."""
    changes = ["training.stage_configs.vision.lr=0.25", "models.resampler_type=mlp"]
    assert effective_config(small_file, []) is None
    text = effective_config(small_file, changes)
    assert text is not None
    (tmp_path / "config.yaml").write_bytes(text)
    assert load_settings(tmp_path / "config.yaml") == load_settings(small_file, changes)
    assert text.splitlines()[0].decode() == f"# small.yaml with {' '.join(changes)}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: panovlm {command} ")
    assert "show tracebacks of errors" in text


def test_no_command_prints_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("panovlm 0.")
