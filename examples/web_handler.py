"""The engine inside an aiohttp application: one handler that streams server-sent events.

Run it, then: curl -N 'http://127.0.0.1:8080/ask?q=What+does+os.path.join+do%3F'
A client that goes away ends its request: the handler is cancelled, and the stream with it.
"""

from collections.abc import AsyncIterator

import orjson
from aiohttp import web

from asurge import Engine, SamplingParams
from asurge.errors import InvalidRequestError

ENGINE = web.AppKey("engine", Engine)


async def ask(request: web.Request) -> web.StreamResponse:
    stream = request.app[ENGINE].stream(request.query.get("q", ""), SamplingParams(max_tokens=64, temperature=0.0))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    try:
        async with stream:  # admitted here: a refused request still gets a proper status
            await response.prepare(request)
            async for out in stream:
                await response.write(b"data: " + orjson.dumps({"text": out.delta_text}) + b"\n\n")
    except InvalidRequestError as error:
        raise web.HTTPBadRequest(text=str(error)) from error
    await response.write(b"data: [DONE]\n\n")
    return response


async def run_engine(app: web.Application) -> AsyncIterator[None]:
    async with Engine("demo") as app[ENGINE]:
        yield


def make_app() -> web.Application:
    app = web.Application()
    app.cleanup_ctx.append(run_engine)
    app.router.add_get("/ask", ask)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", handler_cancellation=True)
