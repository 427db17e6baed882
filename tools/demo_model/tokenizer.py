"""The demo model's byte-level BPE tokenizer, trained on its own corpus."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tools.demo_model.corpus import Fact
from tools.demo_model.samples import CHAT_TEMPLATE, END, SPECIAL_TOKENS, START, epoch

VOCAB_SIZE = 4096
VISIBLE_MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def train_tokenizer(facts: Sequence[Fact], seed: int) -> Tokenizer:
    """A tokenizer of `VOCAB_SIZE` entries; bytes never seen in training still encode."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(seed)
    tokenizer.train_from_iterator((s.prompt + s.answer for _ in range(2) for s in epoch(facts, rng)), trainer)
    return _with_visible_marks(tokenizer)


def _with_visible_marks(tokenizer: Tokenizer) -> Tokenizer:
    """The trainer makes every token it is given special, and special tokens are left out of decoded text. The marks
    that parsers read must stay in it."""
    raw = json.loads(tokenizer.to_str())
    for token in raw["added_tokens"]:
        token["special"] = token["content"] not in VISIBLE_MARKS
    return Tokenizer.from_str(json.dumps(raw))


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer as a folder that transformers loads."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token="<|pad|>",
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
