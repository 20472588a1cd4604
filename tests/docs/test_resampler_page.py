"""The example of docs/adding-a-resampler.md, installed as it stands there and used by commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-resampler.md"
STORY = """
import shutil
from pathlib import Path

import torch

from panovlm.checkpoint.saving.save import save_checkpoint, strip_metadata
from panovlm.cli.main import main
from panovlm.config.schema import ModelSettings, Settings
from panovlm.models.assemble import new_model
from panovlm.models.model import PanoramaVLM
from panovlm.models.vision.resampler import ResamplerModule


def run(*words):
    print("$", *words)
    code = main([str(word) for word in words])
    print("exit", code)


settings = ModelSettings.model_validate(
    {"resampler_type": "avgpool", "resampler_config": {"window": 2}, "latent_dimension": 6}
)
tokens = torch.randn(3, 16, 10)
assert ResamplerModule(settings, vision_dim=10).forward(tokens).shape == (3, 4, 6)

tower = {"model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 40,
         "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 16, "patch_size": 4}
language = {"model_type": "qwen3", "hidden_size": 24, "intermediate_size": 40, "head_dim": 8,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
model = new_model(
    Settings.model_validate(
        {
            "models": {"resampler_type": "avgpool", "resampler_config": {"window": 4},
                       "latent_dimension": 16, "vision_config": tower,
                       "language_config": language},
            "training": {"stage_configs": {s: {} for s in ("vision", "resampler", "finetune")}},
        }
    ),
    ["what is left ?"],
).eval()
whole, bare = Path("whole"), Path("bare")
whole.mkdir()
bare.mkdir()
save_checkpoint(model, whole / "best.ckpt")
strip_metadata(whole / "best.ckpt", bare / "best.ckpt")
shutil.copytree(whole / "tokenizer", bare / "tokenizer")

run("inspect", whole)
run("inspect", bare)
run("explain", bare, "use_ln")
run("add-metadata", "--checkpoint", bare, "--set", "window=4")
run("convert", bare, "out.safetensors", "--to", "safetensors")
run("diff", bare, "out.safetensors", "--weights")
pixels = torch.randn(1, 2, 3, 16, 16)
with torch.no_grad():
    meant = model.vision_tokens(pixels)
    for path in (whole, bare, "out.safetensors"):
        loaded = PanoramaVLM.from_checkpoint(path)
        assert loaded.recipe.models.resampler_config == model.recipe.models.resampler_config
        # Not to the last bit: where a file is mapped, its tensors lie differently in memory, and
        # the library's kernels add in another order.
        torch.testing.assert_close(loaded.vision_tokens(pixels), meant, rtol=1e-5, atol=1e-6)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's package as ``pip install`` leaves it, with its test beside it."""
    text = PAGE.read_text(encoding="utf-8")
    recipe, module, test = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    entry = re.search(r"```toml\n\[project\.(entry-points)\.\"(.*?)\"\]\n(.*?)```", text, re.DOTALL)
    assert entry is not None
    root = tmp_path_factory.mktemp("site")
    information = root / "avgpool-0.1.dist-info"
    files = {
        root / "avgpool" / "__init__.py": "",
        root / "avgpool" / "recipe.py": recipe,
        root / "avgpool" / "module.py": module,
        root / "tests" / "test_avgpool.py": test,
        information / "METADATA": "Metadata-Version: 2.1\nName: avgpool\nVersion: 0.1\n",
        information / "entry_points.txt": f"[{entry[2]}]\n{entry[3]}".replace('"', ""),
    }
    for path, content in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return root


def python(package: Path, folder: Path, *words: str) -> str:
    """Run Python where the package is installed; return what it printed."""
    paths = os.pathsep.join([str(package), *sys.path])
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_command_knows_it(package: Path, tmp_path: Path) -> None:
    """Trained as a part of a model, recorded, recognised without metadata, proved and converted."""
    said = python(package, tmp_path, "-c", STORY)
    first, second, *rest = re.split(r"^\$ .*\n", said, flags=re.MULTILINE)[1:]
    assert first.endswith("verdict: loads, and every setting is known\nexit 0\n")
    row = re.compile(r"models\.resampler_(?:config\.)?(\w+) +(\S+) +(.*)")
    fields = {name: (value, source) for name, value, source in row.findall(second)}
    prefix = "weights: resampler_module.resampler."
    assert fields["type"] == ("avgpool", f"{prefix}linear.weight, {prefix[9:]}linear.bias")
    assert fields["use_ln"] == ("True", f"{prefix}norm.weight present")
    assert fields["window"] == ("2", "ASSUMED default: default of PanoVLM")
    explained, described, converted, compared = rest
    assert "observable: shapes of the weights show it" in explained
    assert re.match(r"bare/checkpoint_metadata\.json: written\n", described)
    assert "window" not in described
    assert "opened again: all equal" in converted
    assert "verdict: the same (weights too)" in compared
    assert said.count("exit 0\n") == 6


def test_its_own_test(package: Path, tmp_path: Path) -> None:
    said = python(package, tmp_path, "-m", "pytest", "-p", "no:cacheprovider", str(package))
    assert "1 passed" in said


def test_a_package_that_is_broken(package: Path, tmp_path: Path) -> None:
    """One clear line, whatever the command."""
    information = tmp_path / "broken-0.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 0.1\n")
    (information / "entry_points.txt").write_text("[panovlm.resamplers]\nodd = broken.recipe:Odd\n")
    code = "from panovlm.cli.main import main; print(main(['inspect', 'none']))"
    said = python(tmp_path, tmp_path, "-c", f"import sys; sys.stderr = sys.stdout; {code}")
    assert said == (
        "error: the resampler 'odd' of the package broken cannot be imported: No module named "
        "'broken'. Mend or uninstall that package.\n2\n"
    )


def test_the_checks_find_a_fault(package: Path, tmp_path: Path) -> None:
    code = (
        "from avgpool.recipe import AvgPoolRecipe, AvgPoolSettings\n"
        "from panovlm.errors import ConfigError\n"
        "from panovlm.models.resamplers.check import check_recipe\n"
        "AvgPoolRecipe.observability['use_ln'] = 'unobservable'\n"
        "try:\n"
        "    check_recipe(AvgPoolRecipe(), AvgPoolSettings(use_ln=False))\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    assert "infer returns use_ln, which is declared unobs" in python(package, tmp_path, "-c", code)
