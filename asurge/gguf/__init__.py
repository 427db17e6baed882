"""GGUF files: llama.cpp's single-file checkpoints. What a file says, checked; nothing here needs JAX."""

from asurge.gguf.checkpoint import GgufCheckpoint, open_gguf
from asurge.gguf.file import GgufFile, GgufTensor

__all__ = ["GgufCheckpoint", "GgufFile", "GgufTensor", "open_gguf"]
