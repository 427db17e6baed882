#!/usr/bin/env bash
# prometheus-client 0.26.0.
# A Histogram that observes NaN counts it in no bucket and not in _count, and its _sum is NaN from then on. Rates of _sum are NaN until the
# process ends, while _count looks healthy and nothing was raised. One time difference computed from a missing (NaN) stamp is enough.
# Check what is observed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet prometheus-client==0.26.0
cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import math
import sys
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Histogram

registry = CollectorRegistry()
seconds = Histogram("seconds", "Observed.", buckets=(1.0, 2.0), registry=registry)
for value in (0.5, math.nan, 1.5):
    seconds.observe(value)
count, total = (registry.get_sample_value(f"seconds_{name}") for name in ("count", "sum"))
everything = registry.get_sample_value("seconds_bucket", {"le": "+Inf"})
print("prometheus-client", version("prometheus-client"))
print(f"three observations, one of them NaN: _count {count}, the bucket +Inf {everything}, _sum {total}")
sys.exit(not (count == everything == 2.0 and math.isnan(total)))
PYTHON
