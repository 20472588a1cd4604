"""The example of docs/adding-a-resampler.md, run as it stands there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from panovlm.checkpoint.shapes import Shapes
from panovlm.config.schema import ModelSettings
from panovlm.models import resamplers
from panovlm.models.vision.resampler import ResamplerModule

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-resampler.md"


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the page's package and entry point for one test."""
    text = PAGE.read_text(encoding="utf-8")
    recipe, module = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    package = tmp_path / "avgpool"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "recipe.py").write_text(recipe, encoding="utf-8")
    (package / "module.py").write_text(module, encoding="utf-8")
    found = re.search(r'entry-points\."(.*?)"\]\n(\w+) = "(.*?)"', text)
    assert found is not None
    entry = EntryPoint(group=found[1], name=found[2], value=found[3])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        resamplers, "entry_points", lambda *, group: [entry] if group == entry.group else []
    )
    resamplers.recipes.cache_clear()
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "avgpool"]:
        del sys.modules[name]
    monkeypatch.undo()
    resamplers.recipes.cache_clear()


def network(config: dict[str, object]) -> ResamplerModule:
    settings = ModelSettings.model_validate(
        {"resampler_type": "avgpool", "resampler_config": config, "latent_dimension": 6}
    )
    return ResamplerModule(settings, vision_dim=10)


@pytest.mark.usefixtures("plugin")
def test_the_network_works() -> None:
    tokens = torch.randn(3, 16, 10)
    assert network({"window": 2}).forward(tokens).shape == (3, 4, 6)


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("use_ln", [True, False])
def test_its_settings_are_read_off_its_weights(*, use_ln: bool) -> None:
    state = network({"window": 4, "use_ln": use_ln}).state_dict()
    shapes = Shapes({name: tuple(tensor.shape) for name, tensor in state.items()}, "resampler.")
    claims = [name for name, found in resamplers.recipes().items() if not found.missing(shapes)]
    seen = resamplers.recipe("avgpool").infer(shapes)
    assert claims == ["avgpool"]
    assert {name: observed.value for name, observed in seen.items()} == {
        "vision_dim": 10,
        "latent_dimension": 6,
        "use_ln": use_ln,
    }
