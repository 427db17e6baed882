"""tokenizer.json against the class that tokenizer_config.json names: what the model was trained with is in the file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Core

from asurge.text import load_tokenizer
from tests.text.families import FAMILIES, TEXT

TEXTS = [
    *TEXT[:6],
    "Hello, world!  It's 12345 o'clock\n\n  and I'LL wait",
    " lead and trail ",
    "<s>after a special token</s> and </s>between",
    "ﬁne ＡＢＣ Scho\u0308n",
]
CLASSES = {
    "GPT2Tokenizer": "gpt2",
    "Qwen2Tokenizer": "qwen2",
    "GPTNeoXTokenizer": "gpt_neox",
    "CohereTokenizer": "cohere",
    "LlamaTokenizer": "llama",
    "LlamaTokenizerFast": "llama",
    "GemmaTokenizer": "gemma2",
}
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def trained(core: Core) -> Core:
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>", "<unk>"], initial_alphabet=alphabet, show_progress=False))  # fmt: skip
    return core


def split() -> Core:
    """As Llama 3: words by a pattern of its own, numbers of at most three digits."""
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    return trained(core)


def digits() -> Core:
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    return trained(core)


def normalized() -> Core:
    core = split()
    core.normalizer = normalizers.NFKC()
    return core


FILES: dict[str, Callable[[], Core]] = {"split": split, "digits": digits, "normalized": normalized, **FAMILIES}
del FILES["wordpiece"]  # which loses spaces by itself


def write(folder: Path, core: Core, named: str | None, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    roles = dict(bos_token="<s>", eos_token="</s>", pad_token="</s>")
    (folder / "tokenizer_config.json").write_text(json.dumps({**roles, "tokenizer_class": named, **config}))
    (folder / "config.json").write_text(json.dumps({"model_type": CLASSES.get(named or "", "llama")}))
    return folder


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("named", CLASSES)
def test_the_file_wins_over_the_class(tmp_path: Path, named: str, file: str) -> None:
    tokenizer = load_tokenizer(write(tmp_path, FILES[file](), named))
    core = Core.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        ids = core.encode(text).ids
        assert tokenizer.encode(text) == ids
        assert tokenizer.encode(text, add_special_tokens=False) == core.encode(text, add_special_tokens=False).ids
        for skip in (True, False):
            assert tokenizer.decode(ids, skip_special_tokens=skip) == core.decode(ids, skip_special_tokens=skip)
    assert tokenizer.vocab_size == core.get_vocab_size()
    ours, theirs = json.loads(tokenizer.to_json() or ""), json.loads(core.to_str())
    for part in ("model", "normalizer", "pre_tokenizer", "decoder", "added_tokens"):
        assert ours[part] == theirs[part]


@pytest.mark.parametrize("named", ["GPT2Tokenizer", "Qwen2Tokenizer", "GPTNeoXTokenizer", "CohereTokenizer"])
def test_a_class_that_disagrees_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture, named: str) -> None:
    with caplog.at_level(logging.WARNING, logger="asurge"):
        load_tokenizer(write(tmp_path, normalized(), named))
    assert f"read from tokenizer.json: {named}, which the checkpoint asks for, disagrees with it" in caplog.text


@pytest.mark.parametrize(
    ("named", "file"),
    [("GPT2Tokenizer", "byte-level BPE"), ("LlamaTokenizer", "split"), ("TokenizersBackend", "split")],
)
def test_a_class_that_agrees_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture, named: str, file: str) -> None:
    with caplog.at_level(logging.WARNING, logger="asurge"):
        load_tokenizer(write(tmp_path, FILES[file](), named))
    assert "tokenizer.json" not in caplog.text


def test_special_tokens_that_no_file_names_are_those_of_the_class(tmp_path: Path) -> None:
    """As GPT-2's own: its config says nothing."""
    core = split()
    core.add_special_tokens(["<|endoftext|>"])
    write(tmp_path, core, None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = load_tokenizer(tmp_path)
    end = core.token_to_id("<|endoftext|>")
    assert tokenizer.eos_token_ids == {end}
    assert tokenizer.is_special_text("<|endoftext|>")
    assert tokenizer.vocab_size == core.get_vocab_size()


def test_a_class_adds_no_token_to_the_vocabulary(tmp_path: Path) -> None:
    write(tmp_path, split(), None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == split().get_vocab_size()
    assert tokenizer.eos_token_ids == set()


def test_a_class_whose_code_comes_with_the_checkpoint_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    core = split()
    (tmp_path / "own.py").write_text("raise SystemExit('code of a checkpoint is run')")
    folder = write(tmp_path, core, "OwnTokenizer", auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]})
    with caplog.at_level(logging.WARNING, logger="asurge"):
        tokenizer = load_tokenizer(folder)
    assert tokenizer.encode(TEXTS[0]) == core.encode(TEXTS[0]).ids
    (record,) = [one for one in caplog.records if one.name == "asurge"]
    assert "alone: its class cannot be loaded (" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_class_that_nobody_knows_is_done_without(tmp_path: Path) -> None:
    core = split()
    tokenizer = load_tokenizer(write(tmp_path, core, "NoSuchTokenizer"))
    assert tokenizer.encode(TEXTS[0]) == core.encode(TEXTS[0]).ids


@pytest.mark.parametrize("adds", [True, False, None])
@pytest.mark.parametrize("begins", [True, False])
def test_whether_a_text_begins_with_a_token_is_the_files_to_say(
    tmp_path: Path, adds: bool | None, begins: bool
) -> None:
    core = split()
    if begins:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    asked = {} if adds is None else {"add_bos_token": adds}
    tokenizer = load_tokenizer(write(tmp_path, core, "LlamaTokenizer", **asked))
    assert tokenizer.encode("Hello") == core.encode("Hello").ids
    assert (tokenizer.encode("Hello")[0] == 0) == begins


def test_tokens_that_the_config_adds_are_kept(tmp_path: Path) -> None:
    core = split()
    added = {str(core.get_vocab_size()): AddedToken("<extra>", special=True).__getstate__()}
    tokenizer = load_tokenizer(write(tmp_path, core, "Qwen2Tokenizer", added_tokens_decoder=added))
    assert tokenizer.encode("a<extra>b", add_special_tokens=False)[1] == core.get_vocab_size()
