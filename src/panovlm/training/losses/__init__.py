"""Training losses beside the language model's own."""

from panovlm.training.losses.vicreg import VICRegTerms, vicreg_overlap_loss

__all__ = ["VICRegTerms", "vicreg_overlap_loss"]
