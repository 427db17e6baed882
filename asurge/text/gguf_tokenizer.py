"""The tokenizer in a GGUF file, rebuilt from its vocabulary and the name of its pre-tokenizer.

A file names the rules by which text is split before merges ("pre"), and does not contain them. The rules below are those that the
models were trained with, as their ``tokenizer.json`` has them; llama.cpp's own differ in places (it does not compose letters for
Qwen, and reads template conditions otherwise).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from asurge.errors import TokenizerError
from asurge.gguf.checkpoint import GgufCheckpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6
"""Types of tokens, as GGUF counts them."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_REST_WITH_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = _WORDS % ("", "") + r"|\p{N}|" + _REST_WITH_SLASH
_GPT4O = _WORDS % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?") + r"|\p{N}{1,3}|" + _REST_WITH_SLASH


@dataclasses.dataclass(frozen=True, slots=True)
class _Rules:
    """How byte-level text is split before merges.

    Attributes:
        pattern: of the pieces; None: GPT-2's.
        digits: each digit is a piece of its own, before the pattern.
        composes: letters and their marks are composed first (NFC).
        whole: a piece that is in the vocabulary is one token, whatever the merges say.
        begins: text begins with the BOS token, where the file does not say.
    """

    pattern: str | None = None
    digits: bool = False
    composes: bool = False
    whole: bool = False
    begins: bool = False


_RULES: Mapping[str, _Rules] = {
    name: rules
    for names, rules in (
        ("gpt-2 gpt2 phi-2 olmo mpt jina-en jina-v2-en roberta-bpe", _Rules()),
        ("smollm starcoder refact command-r codeshell exaone", _Rules(digits=True)),
        ("llama3 llama-v3 llama-bpe falcon3 smollm3", _Rules(_LLAMA3, whole=True, begins=True)),
        ("dbrx smaug-bpe olmo2 phi-4", _Rules(_LLAMA3)),
        ("qwen2 deepseek-r1-qwen stablelm2 hunyuan", _Rules(_QWEN2, composes=True)),
        ("tekken", _Rules(_TEKKEN, whole=True, begins=True)),
        ("gpt-4o llama4", _Rules(_GPT4O)),
    )
    for name in names.split()
}

_TURN_ENDS = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "<|END_OF_TURN_TOKEN|>",
    "<|return|>",
    "<|call|>",
    "[EOT]",
    "<|eot|>",
]
"""Control tokens that end a turn, whichever of them the file names as EOS."""


def gguf_tokenizer(checkpoint: GgufCheckpoint) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """The tokenizer of a file, and the ids of the tokens that end a text.

    Raises:
        TokenizerError: the file has none, it is damaged, or of a kind that is not served.
    """
    from transformers import PreTrainedTokenizerFast

    vocabulary = _Vocabulary(checkpoint)
    tokenizer = _sentencepiece(vocabulary) if vocabulary.model == "llama" else _byte_level(vocabulary)
    _add_tokens(tokenizer, vocabulary)
    _add_begin_and_end(tokenizer, vocabulary)
    roles = {role: text for role, name in _ROLES.items() if (text := vocabulary.text_of(name)) is not None}
    inner = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        chat_template=_chat_template(checkpoint),
        **roles,
    )
    return inner, vocabulary.ends()


_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


class _Vocabulary:
    """The ``tokenizer.ggml.*`` metadata, checked."""

    def __init__(self, checkpoint: GgufCheckpoint) -> None:
        self._path, self._metadata = checkpoint.path, checkpoint.metadata
        self.model = self._get("model")
        if self.model not in ("gpt2", "llama"):
            wanted = "gpt2 (byte-level BPE) and llama (SentencePiece BPE) are"
            raise TokenizerError(f"{self._path}: tokenizer.ggml.model={self.model!r} is not supported; {wanted}")
        self.tokens: list[str] = self._get("tokens") or []
        if not isinstance(self.tokens, list) or not self.tokens:
            raise TokenizerError(
                f"{self._path} holds no tokenizer.ggml.tokens: set tokenizer=... to a folder with the model's"
            )
        self.types = self._numbers("token_type", [1] * len(self.tokens))
        self.ids = {text: number for number, text in enumerate(self.tokens)}

    @property
    def pre(self) -> str:
        """The name of the rules by which text is split."""
        return str(self._get("pre") or "default")

    def rules(self) -> _Rules:
        if self.pre not in _RULES:
            known = ", ".join(sorted(_RULES))
            raise TokenizerError(
                f"{self._path}: tokenizer.ggml.pre={self.pre!r} is not known, and without its rules texts become other tokens "
                f"than the model was trained on ({known} are known): set tokenizer=... to a folder with the model's tokenizer"
            )
        return _RULES[self.pre]

    def merges(self) -> list[tuple[str, str]]:
        """Pairs of pieces, the first to be merged first."""
        given = self._get("merges")
        pairs = [tuple(one.split(" ", 1)) for one in given] if isinstance(given, list) else []
        if not pairs or not all(len(pair) == 2 for pair in pairs):
            raise TokenizerError(f"{self._path}: tokenizer.ggml.merges is missing or damaged: fetch the file again")
        return pairs

    def scores(self) -> list[float]:
        """Scores by token; the highest is merged first."""
        return self._numbers("scores", None)

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name)
        return default if value is None else bool(value)

    def id_of(self, name: str) -> int | None:
        """The id that a special token has, if it is in the vocabulary."""
        value = self._get(f"{name}_token_id")
        return value if isinstance(value, int) and 0 <= value < len(self.tokens) else None

    def text_of(self, name: str) -> str | None:
        number = self.id_of(name)
        return None if number is None else self.tokens[number]

    def ends(self) -> list[int]:
        """The tokens that end a text: EOS, the ends of turns and messages by key, and those known by their texts."""
        named = (self.id_of(name) for name in ("eos", "eot", "eom"))
        texts = (self.ids.get(text) for text in _TURN_ENDS)
        return sorted(
            {
                *(number for number in named if number is not None),
                *(number for number in texts if number is not None and self.types[number] == _CONTROL),
            }
        )

    def _numbers(self, name: str, default: Sequence[Any] | None) -> list[Any]:
        values = self._get(name)
        values = default if values is None else values.tolist()
        if values is None or len(values) != len(self.tokens):
            raise TokenizerError(
                f"{self._path}: tokenizer.ggml.{name} must have {len(self.tokens)} numbers, one for each token: fetch the file again"
            )
        return list(values)

    def _get(self, name: str) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{name}")


def _byte_level(vocabulary: _Vocabulary) -> Tokenizer:
    """BPE over bytes, as GPT-2 has it."""
    rules = vocabulary.rules()
    tokenizer = Tokenizer(models.BPE(vocabulary.ids, vocabulary.merges(), ignore_merges=rules.whole))
    if rules.composes:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if rules.digits else []
    if rules.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(rules.pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rules.pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: _Vocabulary) -> Tokenizer:
    """BPE whose merges are ranked by the scores of what they make, with bytes for what is not in the vocabulary."""
    prefix = vocabulary.flag("add_space_prefix", True)
    model = models.BPE(
        vocabulary.ids,
        _merges_by_score(vocabulary.ids, vocabulary.scores()),
        unk_token=vocabulary.text_of("unknown"),
        fuse_unk=True,
        byte_fallback=_BYTE in vocabulary.types,
    )
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if prefix else spaces
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _merges_by_score(ids: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, those that make the likeliest first."""
    found: list[tuple[float, int, int, int, str, str]] = []
    for whole, number in ids.items():
        pairs = [
            (ids[left], ids[right], left, right)
            for at in range(1, len(whole))
            if (left := whole[:at]) in ids and (right := whole[at:]) in ids
        ]
        found.extend((-scores[number], number, *pair) for pair in sorted(pairs))
    found.sort(key=lambda one: one[:2])
    return [(left, right) for *_, left, right in found]


def _add_tokens(tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    """The tokens that are found in a text before it is split."""
    plain, special = [], []
    for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind == _CONTROL:
            special.append(AddedToken(text, special=True, normalized=False))
        elif kind == _USER_DEFINED:
            plain.append(AddedToken(text, special=False, normalized=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def _add_begin_and_end(tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    """What a text begins and ends with, by the file or, where it does not say, by what the kind of tokenizer does."""
    begins = True if vocabulary.model == "llama" else vocabulary.rules().begins
    first = vocabulary.text_of("bos") if vocabulary.flag("add_bos_token", begins) else None
    last = vocabulary.text_of("eos") if vocabulary.flag("add_eos_token", False) else None
    if first is None and last is None:
        return
    named = [text for text in (first, last) if text is not None]
    single = " ".join([*([first] if first else []), "$A", *([last] if last else [])])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(text, vocabulary.ids[text]) for text in named]
    )


def _chat_template(checkpoint: GgufCheckpoint) -> str | dict[str, str] | None:
    """The file's templates: one, or several by name."""
    key, metadata = "tokenizer.chat_template", checkpoint.metadata
    default = metadata.get(key)
    others = {name.removeprefix(f"{key}."): value for name, value in metadata.items() if name.startswith(f"{key}.")}
    if not others:
        return default if isinstance(default, str) else None
    return {**others, **({"default": default} if isinstance(default, str) else {})}
