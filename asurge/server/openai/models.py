"""``/v1/models``."""

from __future__ import annotations

from aiohttp import web
from msgspec import UNSET

from asurge.server.errors import ApiError
from asurge.server.http.body import reply
from asurge.server.schema.models import Model, ModelList
from asurge.server.state import STATE, ServerState


async def list_all(request: web.Request) -> web.Response:
    """List the models and their aliases."""
    state = request.app[STATE]
    return reply(ModelList(data=[_model(state, name) for name in (*state.models, *state.aliases)]))


async def retrieve(request: web.Request) -> web.Response:
    """Describe a model."""
    state, name = request.app[STATE], request.match_info["model"]
    if name not in state.models and name not in state.aliases:
        raise ApiError(f"the model {name[:100]!r} does not exist", status=404, code="model_not_found", param="model")
    return reply(_model(state, name))


def _model(state: ServerState, name: str) -> Model:
    served = state.models[state.aliases.get(name, name)]
    running = served.engine.is_running
    length, about = (served.engine.max_model_len, dict(served.engine.about)) if running else (None, {})
    root = served.name if name in state.aliases else name
    return Model(id=name, created=served.created, max_model_len=length, root=root, meta=about or UNSET)
