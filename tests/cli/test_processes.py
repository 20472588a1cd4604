"""What only a process of its own can show: signals, exit codes, and what is imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from panovlm.cli.main import main

SCRIPTS = Path(__file__).parents[2] / "scripts"


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "panovlm", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("sign", "workers", "code", "last_word"),
    [
        (signal.SIGINT, 0, 130, "interrupted\n"),
        (signal.SIGTERM, 0, 143, ""),
        (signal.SIGTERM, 2, 143, ""),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGTERM to all"],
)
def test_a_signal_in_the_middle_of_training(
    sign: int, workers: int, code: int, last_word: str, small_file: Path, tmp_path: Path
) -> None:
    """With loaders the signal reaches them too, as from `timeout` or a cluster's queue."""
    more = ["training.stage_configs.vision.epochs=400", f"paths.runs_dir={tmp_path}"]
    more.append(f"training.num_workers={workers}")
    process = subprocess.Popen(
        command("train", "-c", small_file, *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
        # Shells start background jobs, such as a suite of tests, with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    last = tmp_path / "small" / "vision" / "anyres-e2p_bimamba" / "last.ckpt"
    while process.poll() is None and not last.exists():
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    os.killpg(process.pid, sign)
    out, err = process.communicate()
    assert (process.returncode, err) == (code, last_word)
    assert f"; --resume continues from {last}\n" in out
    state = torch.load(last, weights_only=True)
    assert state["global_step"] >= 1
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["train", "eval", "add_metadata_to_checkpoint"])
def test_the_scripts_are_the_commands(name: str, tmp_path: Path) -> None:
    """Each runs from anywhere, and ends as the command does."""
    arguments = {
        "train": ["--config", "none.yaml"],
        "eval": ["--checkpoint-dir", "none"],
        "add_metadata_to_checkpoint": ["--checkpoint", "none"],
    }[name]
    script = [sys.executable, str(SCRIPTS / f"{name}.py"), *arguments]
    done = subprocess.run(
        script, capture_output=True, text=True, cwd=tmp_path, check=False, env=environment()
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: none") and done.stderr.count("\n") == 1


def test_reading_needs_no_torch(trained: Path) -> None:
    """Commands that read headers and documents work where no torch is installed."""
    best, runs = trained / "best.ckpt", trained.parents[2]
    commands = [
        ["inspect", str(trained)],
        ["inspect", str(runs)],
        ["explain", str(best), "hidden_dim"],
        ["diff", str(best), str(trained / "last.ckpt")],
        ["add-metadata", "--recursive", str(runs), "--dry-run", "--json"],
        ["inspect", str(best), "--set", "models.overlap_ratio=0.5", "--json"],
    ]
    code = (
        "import sys\n"
        "from panovlm.cli.main import main\n"
        f"for words in {commands!r}:\n"
        "    if main(words):\n"
        "        sys.exit(f'{words} failed')\n"
        "heavy = {'torch', 'numpy', 'transformers', 'lightning', 'peft', 'safetensors'}\n"
        "heavy |= {'pydantic', 'rich', 'PIL'}\n"
        "if found := sorted(heavy & set(sys.modules)):\n"
        "    sys.exit(f'imported {found}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "verdict: loads, and every setting is known\n" in done.stdout


@pytest.mark.parametrize("name", ["best.ckpt", "best.safetensors"])
def test_inspect_imports_little(name: str, trained: Path, tmp_path: Path) -> None:
    """The time of a short command is that of its imports; each of these would add a good part."""
    path = trained / name
    if not path.is_file():
        path = tmp_path / name
        assert main(["convert", str(trained), str(path), "--to", "safetensors"]) == 0
    code = (
        "import sys\n"
        "from panovlm.cli.main import main\n"
        f"assert main(['inspect', {str(path)!r}]) == 0\n"
        "slow = {'torch', 'numpy', 'transformers', 'pydantic', 'rich', 'yaml', 'PIL'}\n"
        "slow |= {'importlib.metadata', 'email', 'asyncio', 'multiprocessing', 'difflib'}\n"
        "print(sorted(slow & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_inspect_as_a_process(trained: Path) -> None:
    done = subprocess.run(
        command("inspect", trained), capture_output=True, text=True, check=False, env=environment()
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("verdict: loads, and every setting is known\n")
    done = subprocess.run(
        command("inspect", trained / "none"), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1


def test_a_reader_that_goes_away(trained: Path) -> None:
    """As every program of a pipe: no traceback, and no claim that all was done."""
    with subprocess.Popen(
        command("inspect", trained), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE
