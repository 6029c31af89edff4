"""The demo, on a small library: it trains, compares the same bytes, speaks, and leaves a run that loads."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")

from statescan.interop.pretrained import from_pretrained
from statescan.procedures import demo as module
from statescan.procedures.demo import demo
from tests.procedures.train_toys import MODEL, write_text


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    library = write_text(tmp_path / "library")
    (library / "test").mkdir()
    (library / "test" / "left_out.py").write_bytes(b"\xff")
    monkeypatch.setattr(module.sysconfig, "get_paths", lambda: {"stdlib": str(library)})
    monkeypatch.setattr(module, "MODEL", MODEL)
    torch.set_num_threads(1)
    found = demo(str(tmp_path / "runs" / "demo"), steps=2, sample=5)
    said = capsys.readouterr().out
    held_out = module.held_out_bytes(str(library))
    assert found.n_bytes == len(held_out)
    assert found.gzip == 8 * len(gzip.compress(held_out, 9)) / len(held_out)
    assert f"gzip -9{found.gzip:25.3f}" in said
    assert "It continues 'def ':" in said
    assert from_pretrained(found.run).tokenizer.eos_id == 256
    assert demo(str(tmp_path / "runs" / "demo"), steps=1, sample=0).run.name == "demo-2", "an earlier run is never written over"
