"""The engine in an aiohttp application: OpenAI's API under /llm, beside a route of your own that reads the engine itself.

Run it, then:
    curl -N 'http://127.0.0.1:8080/ask?q=What+does+os.path.join+do%3F'
    curl http://127.0.0.1:8080/llm/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Who are you?"}]}'
"""

import orjson
from aiohttp import web

from asurge import Engine, SamplingParams
from asurge.errors import EngineStateError, InvalidRequestError
from asurge.server import make_app

ENGINE = web.AppKey("engine", Engine)


async def ask(request: web.Request) -> web.StreamResponse:
    """Server-sent events. A client that goes away ends its request: the handler is cancelled, and the stream with it."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    try:
        params = SamplingParams(max_tokens=64, temperature=0.0)
        async with request.app[ENGINE].stream(request.query.get("q", ""), params) as stream:  # admitted, or refused
            await response.prepare(request)
            async for out in stream:
                await response.write(b"data: " + orjson.dumps({"text": out.delta_text}) + b"\n\n")
    except InvalidRequestError as error:
        raise web.HTTPBadRequest(text=str(error)) from error
    except EngineStateError as error:  # still loading; /llm/readiness says when it is done
        raise web.HTTPServiceUnavailable(text=str(error)) from error
    await response.write(b"data: [DONE]\n\n")
    return response


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="Ask at /ask?q=..., chat at /llm/\n")


def application(engine: Engine) -> web.Application:
    app = web.Application()
    app[ENGINE] = engine
    app.router.add_get("/", hello)
    app.router.add_get("/ask", ask)
    app.add_subapp("/llm", make_app(engine))  # starts the engine with this application, and stops it
    return app


if __name__ == "__main__":
    web.run_app(application(Engine("demo")), host="127.0.0.1", handler_cancellation=True)
