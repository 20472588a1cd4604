"""Training losses beside the language model's own."""

from panovlm.training.losses.overlap import OverlapTokens, overlap_loss
from panovlm.training.losses.statistics import overlap_statistics
from panovlm.training.losses.vicreg import VICRegTerms, vicreg_overlap_loss

__all__ = [
    "OverlapTokens",
    "VICRegTerms",
    "overlap_loss",
    "overlap_statistics",
    "vicreg_overlap_loss",
]
