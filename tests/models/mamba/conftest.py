from __future__ import annotations

from collections.abc import Iterator

import pytest

from panovlm.models.mamba import backends


@pytest.fixture(params=["torch", "numba"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test with each backend of the scan."""
    if request.param == "numba":
        pytest.importorskip("numba")
    backends.use(request.param)
    yield request.param
    backends.use("auto")
