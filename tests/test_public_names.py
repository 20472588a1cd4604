"""What `from panovlm import …` offers."""

import pytest

import panovlm


@pytest.mark.parametrize("name", panovlm.__all__)
def test_every_public_name_is_there(name: str):
    assert getattr(panovlm, name).__name__ == name
