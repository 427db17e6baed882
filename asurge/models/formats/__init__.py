"""Storage formats of weights: one file each. What a format packs, how it multiplies and what a step reads of it is said there."""

from asurge.models.formats.bfloat16 import BFLOAT16
from asurge.models.formats.grouped import GROUPED, INT4
from asurge.models.formats.int8 import INT8
from asurge.models.formats.interface import Parts, RawSource, WeightFormat

QUANTIZATIONS: dict[str | None, WeightFormat] = {None: BFLOAT16, "int8": INT8, "int4": INT4}
"""What the setting ``quantization`` makes of weights that are floating-point numbers in their checkpoint."""

__all__ = ["BFLOAT16", "GROUPED", "INT4", "INT8", "QUANTIZATIONS", "Parts", "RawSource", "WeightFormat"]
