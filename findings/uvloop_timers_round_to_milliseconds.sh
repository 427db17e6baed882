#!/usr/bin/env bash
# uvloop 0.23.0 against asyncio of Python 3.11.
# uvloop rounds timers to milliseconds, to the nearest: asyncio.sleep(0.0003) does not sleep, so a poll or a pacer with such a pause spins on a
# core, where asyncio's loop waits over a millisecond. Others fire before their time: after call_at(when), loop.time() < when, so code that
# checks the time again and re-arms runs twice. Use whole milliseconds, and compare with a tolerance of one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet uvloop==0.23.0
cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import asyncio
import sys
import time

import uvloop


async def look() -> tuple[float, int]:
    loop = asyncio.get_running_loop()
    begin = time.perf_counter()
    for _ in range(50):
        await asyncio.sleep(0.0003)
    each = (time.perf_counter() - begin) / 50
    early = 0
    for _ in range(50):
        woken = loop.create_future()
        when = loop.time() + 0.0034
        loop.call_at(when, woken.set_result, None)
        await woken
        early += loop.time() < when
    return each, early


print("uvloop", uvloop.__version__)
seen = {}
for name, run in (("asyncio", asyncio.run), ("uvloop", uvloop.run)):
    seen[name] = run(look())
    print(f"{name:8s} sleep(0.0003) takes {seen[name][0] * 1e3:.3f} ms; of 50 timers {seen[name][1]} fire before their time")
sys.exit(not (seen["asyncio"][0] > 0.0003 > seen["uvloop"][0] and seen["asyncio"][1] == 0 and seen["uvloop"][1] > 10))
PYTHON
