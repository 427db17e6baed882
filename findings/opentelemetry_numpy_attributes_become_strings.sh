#!/usr/bin/env bash
# opentelemetry-sdk 1.45.2, numpy 2.4.6.
# Span attributes take numpy.float64 as a number (it is a float), but turn numpy.float32, numpy.int64 and numpy.int32 into strings, with
# no more than a log line: "2" is then compared as text, and a query for gen_ai.usage.output_tokens > 1000 finds nothing. Which one an
# expression gives depends on the arrays that it read. Use int() and float() on what goes into attributes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet opentelemetry-sdk==1.45.2 numpy==2.4.6
cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
values = [2, np.int64(2), np.int32(2), 1.5, np.float64(1.5), np.float32(1.5), [1, np.int64(2)]]
print("opentelemetry-sdk", version("opentelemetry-sdk"), "numpy", np.__version__)
seen = []
for value in values:
    with provider.get_tracer("finding").start_as_current_span("request") as span:
        span.set_attribute("value", value)
    seen.append(exporter.get_finished_spans()[-1].attributes["value"])
    print(f"{value!r:22} is stored as {seen[-1]!r}")
sys.exit(seen != [2, "2", "2", 1.5, 1.5, "1.5", (1, "2")])
PYTHON
