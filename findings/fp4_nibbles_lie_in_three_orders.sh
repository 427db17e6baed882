#!/usr/bin/env bash
# gguf 0.19.0, compressed-tensors 0.20.0 (with torch 2.13.0).
# "4 bits, two in a byte" has three orders. The high nibble of byte 0 is number 16 in GGUF's MXFP4 (blocks of 32), number 8 in GGUF's
# NVFP4 (groups of 16 in a block of 64), and number 1 in the safetensors of compressed-tensors' nvfp4. Shapes and sizes agree, so a
# reader with the wrong one gives weights of the right distribution, and text that is nonsense.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet gguf==0.19.0 torch==2.13.0 compressed-tensors==0.20.0
cd "$work" && "$work/env/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
import torch
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from gguf import GGMLQuantizationType, dequantize

print("gguf", version("gguf"), "compressed-tensors", version("compressed-tensors"))
seen = {}
mxfp4 = np.zeros(17, np.uint8)
mxfp4[:2] = 127, 0x20  # scale 1, and the code of 1.0 in the high nibble of byte 0
seen["GGUF MXFP4"] = int(np.flatnonzero(dequantize(mxfp4[None], GGMLQuantizationType.MXFP4)[0])[0])
nvfp4 = np.zeros(36, np.uint8)
nvfp4[:4], nvfp4[4] = 0x38, 0x20
seen["GGUF NVFP4"] = int(np.flatnonzero(dequantize(nvfp4[None], GGMLQuantizationType.NVFP4)[0])[0])
weight = torch.zeros(1, 32, dtype=torch.bfloat16)
for at in range(32):
    weight.zero_()
    weight[0, at] = 1.0
    if pack_fp4_to_uint8(weight)[0, 0] == 0x20:
        seen["compressed-tensors nvfp4"] = at
for name, at in seen.items():
    print(f"{name:26s} the high nibble of byte 0 is number {at}")
sys.exit(seen != {"GGUF MXFP4": 16, "GGUF NVFP4": 8, "compressed-tensors nvfp4": 1})
PYTHON
