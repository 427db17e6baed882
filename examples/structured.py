"""Texts in a given format: JSON that fits a schema, one of some choices, a pattern. Any model keeps to it, at any temperature."""

import asyncio
import json

from asurge import Engine, GuidedDecodingParams, SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {
        "module": {"enum": ["os", "os.path", "posixpath"]},
        "arguments": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
        "pure": {"type": "boolean"},
    },
    "required": ["module", "arguments", "pure"],
    "additionalProperties": False,
}


async def main() -> None:
    formats = {
        "schema": GuidedDecodingParams(json=SCHEMA),
        "choice": GuidedDecodingParams(choice=["yes", "no"]),
        "regex": GuidedDecodingParams(regex=r"\d{4}-\d{2}-\d{2}"),
    }
    async with Engine("demo") as engine:
        for name, wanted in formats.items():
            params = SamplingParams(max_tokens=200, temperature=0.7, seed=1, guided_decoding=wanted)
            out = await engine.stream("What does os.path.join do?", params).wait_finished()
            print(f"{name}: {out.get_text()}")
            if name == "schema":
                print(f"as an object: {json.loads(out.get_text())}")


if __name__ == "__main__":
    asyncio.run(main())
