"""The coroutines between a request and its tokens, and the channels that join them."""

from asurge.pipeline.generation import Generation
from asurge.pipeline.pipeline import Pipeline, PipelineStatistics

__all__ = ["Generation", "Pipeline", "PipelineStatistics"]
