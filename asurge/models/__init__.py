"""Model families, and how their checkpoints are found and read."""

from asurge.models.config import DecoderConfig
from asurge.models.decoder import Decoder
from asurge.models.dense import DenseAttend
from asurge.models.families.registry import Family, family_for
from asurge.models.weights.conversion import convert
from asurge.models.weights.loading import about_checkpoint, load_model, model_config, open_model
from asurge.models.weights.source import read_config, resolve_checkpoint

__all__ = [
    "Decoder",
    "DecoderConfig",
    "DenseAttend",
    "Family",
    "about_checkpoint",
    "convert",
    "family_for",
    "load_model",
    "model_config",
    "open_model",
    "read_config",
    "resolve_checkpoint",
]
