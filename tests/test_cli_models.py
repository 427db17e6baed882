"""``asurge models``: what is here, and what is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from asurge.cli.main import main
from asurge.cli.models import inspect_model
from asurge.ops import native
from tests.gguf_format.files import converted


def test_a_gguf_file_is_described_without_its_weights_being_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, file = converted(tmp_path, "qwen2", kind=GGMLQuantizationType.Q4_0)
    assert main(["models", "check", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["about"] == {"name": "Tiny", "license": "apache-2.0"}
    assert (found["architecture"], found["layers"]) == ("qwen2", 2)
    assert found["weights"]["Q4_0"] > 0
    assert found["file_bytes"] == file.stat().st_size
    if native.unavailable() is None:
        assert found["served"].startswith("the CPU kernels")
        assert "widened" not in found["served"]
        assert found["weight_bytes"] < 1.15 * found["file_bytes"]


def test_a_bandwidth_says_how_fast_a_stream_can_be() -> None:
    report = inspect_model("demo", bandwidth=1e9)
    assert report.floor_ms == pytest.approx(report.step_bytes / 1e6)


def test_what_is_not_served_is_told_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["UnheardOfForCausalLM"], "model_type": "unheard"}')
    assert main(["models", "check", str(tmp_path)]) != 0
    assert "served by:    nothing: " in capsys.readouterr().out


def test_models_of_a_folder_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converted(tmp_path, "llama", kind=GGMLQuantizationType.Q8_0)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    assert main(["models", "--json"]) == 0
    reports = {report["model"]: report for report in json.loads(capsys.readouterr().out)}
    assert {"demo", "./tiny.gguf", "./broken.gguf"} <= reports.keys()
    assert reports["./tiny.gguf"]["parameters"] > 0
    assert "not a whole GGUF file" in reports["./broken.gguf"]["reason"]
    assert main(["models"]) == 0
    assert "./tiny.gguf" in capsys.readouterr().out


def test_other_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) != 0
    assert "check MODEL" in capsys.readouterr().err
