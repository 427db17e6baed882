"""The engine in a FastAPI application: the lifespan starts and stops it, a route streams its tokens.

Run it, then: curl -N 'http://127.0.0.1:8080/ask?q=What+does+os.path.join+do%3F'
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import orjson
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from asurge import Engine, SamplingParams, TokenStream
from asurge.errors import InvalidRequestError


def application(engine: Engine) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine:
            yield

    async def admitted(q: str) -> AsyncIterator[TokenStream]:
        params = SamplingParams(max_tokens=64, temperature=0.0)
        async with engine.stream(q, params) as stream:  # a refused request still gets a proper status
            yield stream  # closed after the response, also if the client has gone: that ends the request

    app = FastAPI(lifespan=lifespan)

    @app.get("/ask")
    async def ask(stream: Annotated[TokenStream, Depends(admitted)]) -> StreamingResponse:
        return StreamingResponse(events(stream), media_type="text/event-stream")

    @app.exception_handler(InvalidRequestError)
    async def refused(request: Request, error: InvalidRequestError) -> JSONResponse:
        return JSONResponse({"error": str(error), "param": error.param}, status_code=400)

    return app


async def events(stream: TokenStream) -> AsyncIterator[bytes]:
    async for out in stream:
        yield b"data: " + orjson.dumps({"text": out.delta_text}) + b"\n\n"
    yield b"data: [DONE]\n\n"


if __name__ == "__main__":
    uvicorn.run(application(Engine("demo")), host="127.0.0.1", port=8080)
