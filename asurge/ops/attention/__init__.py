"""Attention over pages, one backend per kind of device."""

from asurge.ops.attention.gpu import GpuAttention
from asurge.ops.attention.interface import AttentionBackend, AttentionShape, Heads, Pages, Rows, Window, up_to_last
from asurge.ops.attention.native import NativeAttention
from asurge.ops.attention.reference import dense_attention
from asurge.ops.attention.tpu import TpuAttention
from asurge.ops.attention.xla import XlaAttention

__all__ = [
    "AttentionBackend",
    "AttentionShape",
    "GpuAttention",
    "Heads",
    "NativeAttention",
    "Pages",
    "Rows",
    "TpuAttention",
    "Window",
    "XlaAttention",
    "dense_attention",
    "up_to_last",
]
