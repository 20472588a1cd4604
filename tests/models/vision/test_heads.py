"""What the shapes of the overlap head say, and what is no head."""

import pytest

from panovlm.checkpoint.settle.shapes import Shapes
from panovlm.errors import ContradictionError
from panovlm.models.vision.heads import infer_vicreg_projector


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"mlp.0.bias": (8,), "mlp.3.weight": (4, 8)}, r"mlp\.0\.weight is absent"),
        ({"mlp.1.weight": (8,)}, "has matrices at places"),
    ],
)
def test_a_damaged_head_is_a_contradiction(found, told):
    with pytest.raises(ContradictionError, match=told):
        infer_vicreg_projector(Shapes(found))
