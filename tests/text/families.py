"""A small tokenizer of every family that transformers has, trained in memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Core
from transformers import PreTrainedTokenizerFast

from asurge.text import Tokenizer

TEXT = [
    "The quick brown fox jumps over the lazy dog. It's 3.14, isn't it?",
    "def join(a, *p):\n    return '/'.join([a, *p])\n",
    "Schöne Grüße aus München; déjà vu, naïve façade.",
    "日本語のテキストと漢字。 中文句子。",
    "Emoji 👩‍👩‍👧 🎉 🇩🇪 and e\u0301 combining.",
    "Привет, мир! Γειά σου Κόσμε.",
] * 4


def _byte_level() -> Core:
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False))  # fmt: skip
    return core


def _sentencepiece_bpe() -> Core:
    """As Llama 2: spaces as U+2581, unknown characters as byte tokens, the first space stripped."""
    pieces = Core(models.BPE())
    pieces.normalizer = normalizers.Replace(" ", "▁")
    pieces.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=150, show_progress=False))
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = [piece for piece in pieces.get_vocab() if len(piece) == 1 and (piece == "▁" or piece.isascii())]
    vocab = {name: at for at, name in enumerate([*names, *sorted(letters)])}
    merges = []
    for first in "▁theoinas":
        for second in "theoinasr":
            if first in vocab and second in vocab and first + second not in vocab:
                vocab[first + second] = len(vocab)
                merges.append((first, second))
    core = Core(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["<s>", "</s>"])
    return core


def _unigram() -> Core:
    core = Core(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.train_from_iterator(TEXT, trainers.UnigramTrainer(vocab_size=200, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False))  # fmt: skip
    return core


def _wordpiece() -> Core:
    core = Core(models.WordPiece(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(cleanup=False)
    core.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "<s>", "</s>"], show_progress=False))  # fmt: skip
    return core


def _with_bos() -> Core:
    core = _byte_level()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return core


FAMILIES = {
    "byte-level BPE": _byte_level,
    "byte-level BPE with BOS": _with_bos,
    "sentencepiece BPE": _sentencepiece_bpe,
    "unigram": _unigram,
    "wordpiece": _wordpiece,
}


@cache
def tokenizer(family: str) -> Tokenizer:
    return _finished(FAMILIES[family]())


def tokenizer_with(marks: Mapping[str, bool]) -> Tokenizer:
    """In which each of these is one token, and special or not."""
    core = _byte_level()
    core.add_tokens([AddedToken(mark, special=special, normalized=False) for mark, special in marks.items()])
    return _finished(core)


def _finished(core: Core) -> Tokenizer:
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>"))
