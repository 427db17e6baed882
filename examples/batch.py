"""Complete many prompts at once; outputs come in the order of the prompts."""

import asyncio

from asurge import Engine, SamplingParams

FUNCTIONS = ["len", "math.sqrt", "json.dumps", "random.choice", "shutil.copytree", "asyncio.run"]


async def main() -> None:
    async with Engine("demo") as engine:
        prompts = [f"What does {name} do?" for name in FUNCTIONS]
        for out in await engine.generate(prompts, SamplingParams(max_tokens=64, temperature=0.0)):
            print(f"{out.prompt}{out.get_text()}\n")


if __name__ == "__main__":
    asyncio.run(main())
