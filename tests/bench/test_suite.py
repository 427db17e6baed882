"""Computations of the scripts in `benchmarks`, which are run by hand."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from asurge.errors import ConfigError
from asurge.text import load_tokenizer
from benchmarks.checkpoints import CONFIGS, random_weights, write_tokenizer
from benchmarks.suite import median_of, parse_settings, parse_workloads, store, table_of


def test_medians_by_field() -> None:
    documents = [
        {"name": "a", "flag": True, "inner": {"x": 1.0, "gone": None}},
        {"name": "a", "flag": True, "inner": {"x": 5.0, "gone": None}},
        {"name": "a", "flag": True, "inner": {"x": 2.0, "gone": 7}},
    ]
    assert median_of(documents) == {"name": "a", "flag": True, "inner": {"x": 2.0, "gone": 7}}


def test_options() -> None:
    assert parse_workloads("w1,w5") == ["w1", "w5"]
    with pytest.raises((ConfigError, argparse.ArgumentTypeError)):
        parse_workloads("w1,x")
    assert parse_settings(["max_num_seqs=8", "dtype=float32", "enable_prefix_caching=false"]) == {
        "max_num_seqs": 8,
        "dtype": "float32",
        "enable_prefix_caching": False,
    }


def test_the_table_shows_every_workload() -> None:
    share = {"mean": 1.0, "p50": 2.0, "p90": 3.0, "p99": 4.0, "max": 5.0}
    metrics = {"duration_s": 1.0, "output_tokens_per_s": 250.0, "ttft_ms": share, "tpot_ms": None, "itl_ms": share}
    found = {"metrics": metrics, "event_loop_lag_ms": None, "roofline": {"ratio": None}}
    result = {
        "model": "demo", "cold_start_s": 9.0, "warm_start_s": 3.0, "peak_resident_bytes": 1 << 30,
        "peak_minus_weights_and_kv_bytes": 1 << 29, "bandwidth_bytes_per_s": {"best": 25e9}, "compilations_while_serving": 0,
        "workloads": {"w1": found, "w2": found},
    }  # fmt: skip
    screen = io.StringIO()
    Console(file=screen, width=140).print(table_of(result))
    assert "w1" in screen.getvalue()
    assert "w2" in screen.getvalue()
    assert "25.0 GB/s" in screen.getvalue()


def test_results_are_stored_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.suite.RESULTS", tmp_path / "results")
    store({"a": 1}, None)
    assert not (tmp_path / "results").exists()
    store({"a": 1}, "mine")
    assert json.loads((tmp_path / "results" / "mine.json").read_text()) == {"a": 1}


def test_every_token_of_a_made_tokenizer_has_a_text(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 4000)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 4000
    assert tokenizer.decode([3999]) == " word3999"
    text = "What does os.path.join do? Grüße, 日本 🎉"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", CONFIGS)
def test_made_weights_have_the_checkpoints_names(name: str) -> None:
    small = {**CONFIGS[name], "hidden_size": 36, "num_hidden_layers": 1, "vocab_size": 50, "intermediate_size": 8}
    small |= {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 4}
    weights = random_weights(small, seed=1)
    assert weights["model.embed_tokens.weight"].shape == (50, 36)
    assert "lm_head.weight" not in weights
    again = random_weights(small, seed=1)
    assert all((weights[key] == again[key]).all() for key in weights)
