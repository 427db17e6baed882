"""A checkpoint's tokenizer, as the rest of asurge sees it."""

from __future__ import annotations

import copy
import functools
import json
import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asurge.errors import TokenizerError
from asurge.structured import check_unicode
from asurge.text.template import Allowance, render_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLOCKING_CHARACTERS = 2048
"""Texts up to this long tokenise in well under a millisecond: cheaper on an event loop than handing them to a thread."""

_importing = threading.Lock()  # transformers' lazy imports fail where two threads meet in them
_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
_SAMPLING = {"temperature": (0.0, 100.0), "top_k": (-1, 2**31 - 1), "top_p": (1e-9, 1.0)}
_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_PROBES = (
    "Hello, world!  It's 12345 o'clock; I'LL wait.",
    " leading and trailing ",
    "def f(x):\n\treturn x\n\n\n    # two\r\n",
    "Scho\u0308ne Gr\u00fc\u00dfe, \ufb01ne \uff21\uff22\uff23",
    "\u65e5\u672c\u8a9e\u3000\u4e2d\u6587 \u041f\u0440\u0438\u0432\u0435\u0442 \U0001f389",
)
"""Texts about which tokenizers disagree: spaces, digits, contractions, line ends, composed and decomposed letters, scripts."""

_log = logging.getLogger("asurge")


def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies: printable ones for themselves, others in order (GPT-2)."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + at): byte for at, byte in enumerate(rest)}


_BYTES = _byte_alphabet()
_BYTE_PIECE, _SPACE = re.compile("<0x([0-9A-F]{2})>"), "\u2581"


class Tokenizer:
    """A transformers tokenizer behind the few calls that are needed.

    `encode` and `decode` may run in several threads at once.

    Attributes:
        sampling_defaults: how the checkpoint's authors want texts sampled, as fields of `asurge.SamplingParams`, where a request
            over HTTP does not say.
    """

    def __init__(
        self,
        inner: PreTrainedTokenizerBase,
        eos_token_ids: Sequence[int] = (),
        sampling: Mapping[str, float] | None = None,
    ) -> None:
        self._inner = inner
        self.sampling_defaults = dict(sampling or {})
        own = [] if inner.eos_token_id is None else [int(inner.eos_token_id)]
        self.eos_token_ids = frozenset((*own, *eos_token_ids))
        self._added = frozenset(inner.added_tokens_decoder)
        self._fast_decode = _fast_decode(inner)

    @property
    def chat_template(self) -> str | None:
        """The checkpoint's default chat template."""
        template = self._inner.chat_template
        return template.get("default") if isinstance(template, dict) else template

    @property
    def tool_template(self) -> str | None:
        """The chat template for conversations with tools: the default one, where there is no other."""
        template = self._inner.chat_template
        return template.get("tool_use", self.chat_template) if isinstance(template, dict) else template

    @property
    def vocab_size(self) -> int:
        """Entries, added tokens included."""
        return len(self._inner)

    @property
    def added_tokens(self) -> dict[str, int]:
        """Ids of the tokens that are found in text before it is split into others, by text."""
        return {str(token): number for number, token in self._inner.added_tokens_decoder.items()}

    def is_special_text(self, text: str) -> bool:
        """Whether a text is one special token."""
        token = self._inner.convert_tokens_to_ids(text)
        return isinstance(token, int) and token != self._inner.unk_token_id and token in self._added

    @property
    def special_texts(self) -> tuple[str, ...]:
        """The texts of all tokens that `decode` can skip."""
        return tuple(self._inner.all_special_tokens)

    def token_bytes(self, token: int) -> bytes:
        """Bytes that a token adds to a text, which may be a piece of a character."""
        piece = None if token in self._added else self._inner.convert_ids_to_tokens(token)
        if isinstance(piece, str):
            if self._is_byte_level and all(char in _BYTES for char in piece):
                return bytes(_BYTES[char] for char in piece)
            if not self._is_byte_level and (byte := _BYTE_PIECE.fullmatch(piece)) is not None:
                return bytes((int(byte[1], 16),))
            if _SPACE in piece:
                return piece.replace(_SPACE, " ").encode()
        return self.decode([token], skip_special_tokens=False).encode("utf-8", "replace")

    @functools.cached_property
    def _is_byte_level(self) -> bool:
        text = self.to_json()
        return text is not None and '"ByteLevel"' in json.dumps(json.loads(text).get("decoder"))

    def to_json(self) -> str | None:
        """The tokenizer as a tokenizer.json; None if it is of another kind."""
        backend = getattr(self._inner, "backend_tokenizer", None)
        if backend is None:
            return None
        backend = copy.copy(backend)
        backend.no_padding()
        backend.no_truncation()
        text: str = backend.to_str()
        return text

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Raises:
            InvalidRequestError: the text is not valid Unicode.
        """
        check_unicode("prompt", text)
        return list(self._inner.encode(text, add_special_tokens=add_special_tokens, verbose=False))

    def decode(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> str:
        """Text of token ids, exactly: no spaces are cleaned up."""
        if self._fast_decode is not None:
            return self._fast_decode(token_ids, skip_special_tokens=skip_special_tokens)
        text = self._inner.decode(
            list(token_ids),
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
            spaces_between_special_tokens=spaces_between_special_tokens,
        )
        assert isinstance(text, str)
        return text

    def render(
        self, messages: Sequence[Mapping[str, Any]], template: str | None, allowance: Allowance, /, **kwargs: Any
    ) -> str:
        """Messages through a chat template, the checkpoint's if none is given; see `render_template`."""
        source = self._inner.get_chat_template(template, kwargs.get("tools"))
        return render_template(source, allowance, messages, **{**self._inner.special_tokens_map, **kwargs})


def _fast_decode(inner: PreTrainedTokenizerBase) -> Callable[..., str] | None:
    """The library's own decoder, where transformers adds nothing to it: 2 microseconds a call instead of 9."""
    from transformers import PreTrainedTokenizerFast

    kind = type(inner)
    if not issubclass(kind, PreTrainedTokenizerFast):
        return None
    if kind._decode is not PreTrainedTokenizerFast._decode or kind.decode is not PreTrainedTokenizerFast.decode:
        return None
    decode: Callable[..., str] = inner.backend_tokenizer.decode
    return decode


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a local folder or GGUF file. Code that comes with a checkpoint is never run.

    Raises:
        TokenizerError: it is missing or cannot be read.
    """
    if path.is_file():
        return _from_gguf(path)
    folder = path
    if not any((folder / name).is_file() for name in _FILES):
        raise TokenizerError(
            f"{folder} holds no tokenizer ({', '.join(_FILES)}): add the model's, or set tokenizer=... to a folder that does"
        )
    try:
        with _importing:
            inner = _read(folder)
    except Exception as error:  # transformers raises whatever its parsers raise
        raise TokenizerError(f"the tokenizer in {folder} cannot be read ({error}): fetch it again") from error
    return Tokenizer(inner, sorted(_declared_ends(folder)), _declared_sampling(folder))


def _from_gguf(path: Path) -> Tokenizer:
    from asurge.gguf.checkpoint import open_gguf
    from asurge.text.gguf_tokenizer import gguf_tokenizer

    checkpoint = open_gguf(path)
    with _importing:
        inner, ends = gguf_tokenizer(checkpoint)
    return Tokenizer(inner, ends)


def _read(folder: Path) -> PreTrainedTokenizerBase:
    """What reads a folder: the generic class reads tokenizer.json as it stands. Classes with a name build parts of it by themselves,
    which need not be those that the model was trained with; so they have a say only where there is no such file, and on special
    tokens that no file names. The imports take seconds, so they wait until an engine starts; the automatic class takes four
    times as long as the generic one (2.7 s against 0.6 s)."""
    from transformers import PreTrainedTokenizerFast

    local = {"trust_remote_code": False, "local_files_only": True}
    if not (folder / "tokenizer.json").is_file():
        return _of_named_class(folder, **local)
    inner = PreTrainedTokenizerFast.from_pretrained(str(folder), **local)
    if _class_name(folder) in _GENERIC:
        return inner
    try:
        named = _of_named_class(folder, **local)
    except Exception as error:  # whatever; its code may also come with the checkpoint, and is not run
        reason = str(error).partition("\n")[0]
        _log.warning("the tokenizer is read from tokenizer.json alone: its class cannot be loaded (%s)", reason)
        return inner
    _complete(inner, named)
    _compare(inner, named)
    return inner


def _of_named_class(folder: Path, **local: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), **local)


def _class_name(folder: Path) -> object:
    """What tokenizer_config.json gives."""
    try:
        return json.loads((folder / "tokenizer_config.json").read_text()).get("tokenizer_class")
    except (OSError, ValueError, AttributeError):
        return None


def _complete(inner: PreTrainedTokenizerBase, named: PreTrainedTokenizerBase) -> None:
    """Take the special tokens that a class has by default, if they are in the vocabulary."""
    vocabulary = inner.get_vocab()
    for role in ("bos_token", "eos_token", "pad_token"):
        token = getattr(named, role)
        if getattr(inner, role) is None and token in vocabulary:
            inner.add_special_tokens({role: token})


def _compare(inner: PreTrainedTokenizerBase, named: PreTrainedTokenizerBase) -> None:
    """Warn if the class would have read or written some text otherwise."""
    text = next((text for text in _PROBES if _through(inner, text) != _through(named, text)), None)
    if text is not None:
        _log.warning(
            "the tokenizer is read from tokenizer.json: %s, which the checkpoint asks for, disagrees with it about %r. Set "
            'tokenizer_class to "PreTrainedTokenizerFast" in tokenizer_config.json to have all software read it so',
            type(named).__name__,
            text,
        )


def _through(inner: PreTrainedTokenizerBase, text: str) -> tuple[list[int], str] | str:
    """What becomes of a text: its tokens, and what they are written as; or why it cannot be read."""
    try:
        ids = inner.encode(text)
        return ids, str(inner.decode(ids, clean_up_tokenization_spaces=False))
    except Exception as error:  # of the library in Rust
        return str(error)


def _declared_ends(folder: Path) -> set[int]:
    """End tokens that config.json and generation_config.json name, which the tokenizer may not know of."""
    ends: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        try:
            raw = json.loads((folder / name).read_text())
            declared = raw.get("eos_token_id")
            if declared is None:  # beside an image encoder, the language model has a config of its own
                declared = (raw.get("text_config") or {}).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue
        ends.update(end for end in (declared if isinstance(declared, list) else [declared]) if isinstance(end, int))
    return ends


def _declared_sampling(folder: Path) -> dict[str, float]:
    """Temperature, top_k and top_p of generation_config.json, as far as they are within bounds."""
    try:
        raw = json.loads((folder / "generation_config.json").read_text())
        given = {name: raw.get(name) for name in _SAMPLING}
    except (OSError, ValueError, AttributeError):
        return {}
    return {
        name: value
        for name, value in given.items()
        if type(value) in (int, float)
        and _SAMPLING[name][0] <= value <= _SAMPLING[name][1]
        and (name != "top_k" or type(value) is int)
    }
