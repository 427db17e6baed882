"""GGUF files: llama.cpp's single-file checkpoints. What a file says, checked; nothing here needs JAX."""

from asurge.gguf.checkpoint import GgufCheckpoint, models_in, open_gguf
from asurge.gguf.file import GgufTensor, is_gguf

__all__ = ["GgufCheckpoint", "GgufTensor", "is_gguf", "models_in", "open_gguf"]
