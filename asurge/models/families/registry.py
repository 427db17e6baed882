"""Families by the names that config.json gives in ``architectures``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from asurge.errors import UnknownArchitectureError
from asurge.models.config import DecoderConfig
from asurge.models.families import (
    gemma,
    llama,
    llama4,
    mistral,
    mixtral,
    olmo2,
    olmo3,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
)
from asurge.models.keys import WatchedConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """A model family: its architecture's name, and how its config is read.

    Checkpoints of all families use the tensor names of `asurge.models.weights.checkpoint`.

    Attributes:
        besides: keys of its configs that tell of what is not served, such as an image encoder.
    """

    architecture: str
    read: Callable[[Mapping[str, Any]], DecoderConfig]
    besides: tuple[str, ...] = ()

    def config(self, raw: Mapping[str, Any]) -> DecoderConfig:
        """The shape of a model, from its parsed config.json.

        Raises:
            ModelLoadError: a value is missing or of a wrong kind, or a key is unknown that may change what the model computes.
        """
        watched = WatchedConfig(raw)
        config = self.read(watched)
        watched.refuse_unread(self.besides)
        return config


FAMILIES = {
    family.architecture: family
    for family in (
        Family("Gemma2ForCausalLM", gemma.gemma2),
        Family("Gemma3ForCausalLM", gemma.gemma3),
        Family("LlamaForCausalLM", llama.config),
        Family("Llama4ForCausalLM", llama4.config),
        Family("Llama4ForConditionalGeneration", llama4.conditional, llama4.BESIDES),
        Family("MistralForCausalLM", mistral.config),
        Family("MixtralForCausalLM", mixtral.config),
        Family("Olmo2ForCausalLM", olmo2.config),
        Family("Olmo3ForCausalLM", olmo3.config),
        Family("Phi3ForCausalLM", phi3.config),
        Family("Qwen2ForCausalLM", qwen2.config),
        Family("Qwen3ForCausalLM", qwen3.config),
        Family("Qwen3MoeForCausalLM", qwen3_moe.config),
        Family("SmolLM3ForCausalLM", smollm3.config),
    )
}


def family_for(raw: Mapping[str, Any]) -> Family:
    """The family of a parsed config.json.

    Raises:
        UnknownArchitectureError: none of its architectures is known.
    """
    names = raw.get("architectures") or []
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and name in FAMILIES:
            return FAMILIES[name]
    raise UnknownArchitectureError(
        f"config.json: architectures={names!r} is not supported; these are: {', '.join(sorted(FAMILIES))}"
    )
