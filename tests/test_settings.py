"""Settings and parameters are the same thing everywhere they are named: in types, checks, documents and over HTTP."""

from __future__ import annotations

import dataclasses
import re

import msgspec
import pytest

from asurge import Engine, SamplingParams
from asurge.config import EngineConfig, EngineSettings
from asurge.errors import ConfigError, InvalidRequestError
from asurge.server.schema.chat import ChatCompletionRequest
from asurge.server.schema.completions import CompletionRequest
from asurge.server.schema.sampling import NOT_SERVED

FIELDS = [field.name for field in dataclasses.fields(SamplingParams)]

HTTP_NAMES = {"guided_decoding": "response_format", "output_kind": "stream"}
"""Fields of requests that set a parameter of another name."""


def test_an_editor_knows_every_setting_of_the_engine() -> None:
    fields = {field.name: str(field.type) for field in dataclasses.fields(EngineConfig) if field.name != "model"}
    mappings = {name: f"{fields[name]} | Mapping[str, Any]" for name in ("scheduler", "cache")}
    annotations = {name: given.__forward_arg__ for name, given in EngineSettings.__annotations__.items()}
    assert annotations == fields | mappings


def test_a_setting_that_the_types_refuse_is_refused_when_it_runs() -> None:
    with pytest.raises(ConfigError, match="unknown setting max_model_length=64"):
        Engine(max_model_length=64)  # type: ignore[call-arg]


@pytest.mark.parametrize("field", FIELDS)
def test_every_sampling_parameter_is_checked(field: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        SamplingParams(**{field: object()})
    assert refused.value.param == field


@pytest.mark.parametrize("field", FIELDS)
def test_every_sampling_parameter_is_documented(field: str) -> None:
    described = re.findall(r"^ {8}((?:\w+(?:, | / )?)+):", SamplingParams.__doc__ or "", re.MULTILINE)
    assert field in {name for names in described for name in re.split(r", | / ", names)}


@pytest.mark.parametrize("field", FIELDS)
def test_every_sampling_parameter_is_served_or_listed_as_not_served(field: str) -> None:
    served = {
        one.name for schema in (ChatCompletionRequest, CompletionRequest) for one in msgspec.structs.fields(schema)
    }
    assert (HTTP_NAMES.get(field, field) in served) is not (field in NOT_SERVED)
