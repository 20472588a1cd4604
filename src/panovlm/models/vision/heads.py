"""Shape inference of the small parts around the resampler. No torch is imported here."""

from __future__ import annotations

from panovlm.checkpoint.settle.shapes import Observations, Shapes
from panovlm.errors import ContradictionError


def infer_heads(shapes: Shapes) -> Observations:
    """Read which optional parts a model has.

    Args:
        shapes: shapes of a whole model, under its own names.

    Returns:
        Fields of the model settings, by their bare names.
    """
    seen = Observations(shapes)
    seen.add("use_vicreg_norm", shapes.has("vision_backbone.norm.weight"))
    seen.add("use_text_projection", shapes.has("text_projection.weight"))
    return seen


def infer_projection(shapes: Shapes) -> Observations:
    """Read ``latent_dimension`` and ``language_dim`` off the projection.

    Args:
        shapes: the subtree ``projector.``.

    Raises:
        ContradictionError: the projection is absent or no matrix.
    """
    if "linear.weight" not in shapes:
        raise ContradictionError(
            f"{shapes.prefix}linear.weight is absent: the projection to the language model is "
            "missing, the checkpoint is incomplete."
        )
    seen = Observations(shapes)
    seen.add("latent_dimension", shapes.dim("linear.weight", 1))
    seen.add("language_dim", shapes.dim("linear.weight", 0))
    return seen


def infer_vicreg_projector(shapes: Shapes) -> Observations | None:
    """Read the settings of the overlap head.

    The head is ``depth - 1`` stages of Linear, LayerNorm or nothing, GELU, three places each,
    then a Linear.

    Args:
        shapes: the subtree ``vicreg_projector.``.

    Returns:
        Model settings by bare name plus ``input_dim``, or ``None`` without a head.

    Raises:
        ContradictionError: its layers do not fit together.
    """
    places = shapes.indices("mlp")
    if not places:
        return None
    bare = [f"{shapes.prefix}mlp.{i}.weight" for i in places if f"mlp.{i}.weight" not in shapes]
    if bare:
        raise ContradictionError(
            f"{bare[0]} is absent, though its layer is there; the checkpoint is incomplete."
        )
    linear = [i for i in places if len(shapes[f"mlp.{i}.weight"]) == 2]
    if not linear or linear != [3 * j for j in range(len(linear))]:
        raise ContradictionError(
            f"{shapes.prefix}mlp has matrices at places {linear}; multiples of three from 0 on "
            "were expected."
        )
    seen = Observations(shapes)
    depth = len(linear)
    first, last = f"mlp.{linear[0]}.weight", f"mlp.{linear[-1]}.weight"
    seen.add("input_dim", shapes.dim(first, 1))
    seen.add("vicreg_projector_dim", shapes.dim(last, 0))
    seen.add("vicreg_projector_depth", depth, f"{depth} matrices in {shapes.prefix}mlp")
    if depth > 1:
        hidden = shapes.dim(first, 0)
        seen.add("vicreg_projector_hidden", hidden)
        seen.add("vicreg_projector_ln", shapes.has("mlp.1.weight"))
        for place in linear[1:-1]:
            shapes.require(f"mlp.{place}.weight", (hidden, hidden), "hidden × hidden")
        out = seen["vicreg_projector_dim"].value
        shapes.require(last, (out, hidden), "output × hidden")
    return seen
