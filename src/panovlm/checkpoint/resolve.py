"""From a checkpoint to its whole configuration, with the source of every field.

Order: explicit overrides, metadata, weights, defaults. No tensor data is read and no torch is
needed. A contradiction between a claim and the weights is reported with both sides; a field that
neither tells is listed as assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from panovlm.checkpoint.backbones import BACKBONES, settle_backbone
from panovlm.checkpoint.fields import RESAMPLER, FieldMap, bears, defaults, nest
from panovlm.checkpoint.formats import read_header
from panovlm.checkpoint.infer import Inferred, infer
from panovlm.checkpoint.keys import KeyMap, map_keys
from panovlm.checkpoint.locate import Location, locate
from panovlm.checkpoint.metadata import fingerprint
from panovlm.checkpoint.original import CERTAIN
from panovlm.checkpoint.resolution import Conflict, Resolution, Source, SourceKind
from panovlm.checkpoint.shapes import Observed
from panovlm.checkpoint.sources import Claims, DocumentReader
from panovlm.config.legacy import ORIGINAL_DEFAULTS
from panovlm.config.load import apply_recipe_overrides
from panovlm.config.schema import Recipe
from panovlm.errors import CheckpointError
from panovlm.models.resamplers import recipe as resampler_recipe
