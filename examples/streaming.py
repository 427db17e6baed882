"""Stream one answer, token by token."""

import asyncio

from asurge import Engine, SamplingParams


async def main() -> None:
    async with Engine("demo") as engine:
        prompt = "What does os.path.join do?"
        print(prompt, end="")
        async for out in engine.stream(prompt, SamplingParams(max_tokens=64, temperature=0.0)):
            print(out.delta_text, end="", flush=True)
        print(f"\n\n{out.num_generated_tokens} tokens, first after {out.first_token_time:.3f} s")


if __name__ == "__main__":
    asyncio.run(main())
