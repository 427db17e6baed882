"""A conversation of two turns, the second one streamed."""

import asyncio

from asurge import Engine, SamplingParams


async def main() -> None:
    params = SamplingParams(max_tokens=64, temperature=0.0)
    async with Engine("demo") as engine:
        messages = [{"role": "user", "content": "Who are you?"}]
        reply = await engine.chat(messages, params)
        print("assistant:", reply.get_text())

        messages = [{"role": "user", "content": "What does os.getcwd do?"}]
        print("assistant: ", end="")
        async for out in await engine.chat(messages, params, stream=True):
            print(out.delta_text, end="", flush=True)
        print()


if __name__ == "__main__":
    asyncio.run(main())
