"""llama.cpp through llama-cpp-python's bindings, batched as its server does: each step decodes a token of every sequence and, in
what is left of the batch, prompts. ``threads`` in the orders; by default one a processor."""

from __future__ import annotations

import os
from typing import Any

import llama_cpp as llama
import numpy as np
import protocol

BATCH = 512


class Stepped:
    """`protocol.Stepper` over one context."""

    def __init__(self, context: Any, vocab_size: int, sequences: int) -> None:
        self._context, self._vocab_size = context, vocab_size
        self._memory = llama.llama_get_memory(context)
        self._batch = llama.llama_batch_init(BATCH, 0, 1)
        self._free = list(range(sequences))
        self._open: dict[str, _Sequence] = {}

    def add(self, name: str, prompt: protocol.Prompt, output_len: int) -> None:
        self._open[name] = _Sequence(self._free.pop(), prompt, output_len)

    def step(self) -> list[tuple[str, int, bool]]:
        decoding_first = sorted(self._open.items(), key=lambda item: len(item[1].pending) > 1)
        batch, sampled = self._batch, []
        batch.n_tokens = 0
        for name, sequence in decoding_first:
            now = sequence.pending[: BATCH - batch.n_tokens]
            del sequence.pending[: len(now)]
            for token in now:
                at = batch.n_tokens
                batch.token[at], batch.pos[at] = token, sequence.position
                batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, sequence.slot, False
                sequence.position += 1
                batch.n_tokens += 1
            if now and not sequence.pending:
                batch.logits[batch.n_tokens - 1] = True
                sampled.append((name, sequence, batch.n_tokens - 1))
        status = llama.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode ended with status {status}")
        news = []
        for name, sequence, at in sampled:
            logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(self._context, at), (self._vocab_size,))
            sequence.pending.append(int(logits.argmax()))
            sequence.left -= 1
            news.append((name, 1, sequence.left == 0))
            if sequence.left == 0:
                self.drop(name)
        return news

    def drop(self, name: str) -> None:
        slot = self._open.pop(name).slot
        llama.llama_memory_seq_rm(self._memory, slot, -1, -1)
        self._free.append(slot)


class _Sequence:
    def __init__(self, slot: int, prompt: protocol.Prompt, output_len: int) -> None:
        self.slot, self.pending, self.left, self.position = slot, list(prompt), output_len, 0


def start(orders: dict[str, Any]) -> protocol.Stepper:
    """Load."""
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(orders["model"].encode(), llama.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {orders['model']}")
    threads = orders.get("threads") or len(os.sched_getaffinity(0))
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = orders["context_len"], BATCH, BATCH
    params.n_seq_max, params.kv_unified = orders["max_num_seqs"], True
    params.n_threads = params.n_threads_batch = threads
    if "flash" in orders:
        params.flash_attn_type = (
            llama.LLAMA_FLASH_ATTN_TYPE_ENABLED if orders["flash"] else llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
    context = llama.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError("llama.cpp cannot make a context")
    vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    return Stepped(context, vocab_size, orders["max_num_seqs"])


if __name__ == "__main__":
    protocol.answer(start)
