"""The coroutines between a request and its tokens, and the channels that join them."""

from asurge.pipeline.completion import Completion
from asurge.pipeline.generation import Generation, PromptInfo
from asurge.pipeline.logprobs import LogprobFormatter, PromptLogprobs
from asurge.pipeline.observer import STAGES, RequestObserver, Stage, StepObserver
from asurge.pipeline.pacer import Pacer
from asurge.pipeline.pipeline import Pipeline, PipelineStatistics

__all__ = [
    "STAGES",
    "Completion",
    "Generation",
    "LogprobFormatter",
    "Pacer",
    "Pipeline",
    "PipelineStatistics",
    "PromptInfo",
    "PromptLogprobs",
    "RequestObserver",
    "Stage",
    "StepObserver",
]
