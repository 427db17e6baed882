"""The coroutines between a request and its tokens, and the channels that join them."""

from asurge.pipeline.completion import Choice
from asurge.pipeline.generation import Generation, PromptFacts
from asurge.pipeline.logprobs import LogprobTeller, PromptLogprobs
from asurge.pipeline.observer import STAGES, RequestObserver, Stage, StepObserver
from asurge.pipeline.pacer import Pacer
from asurge.pipeline.pipeline import Pipeline, PipelineStatistics

__all__ = [
    "STAGES",
    "Choice",
    "Generation",
    "LogprobTeller",
    "Pacer",
    "Pipeline",
    "PipelineStatistics",
    "PromptFacts",
    "PromptLogprobs",
    "RequestObserver",
    "Stage",
    "StepObserver",
]
