"""Tokenizers: exact round trips, what a folder keeps, what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from statescan.data import ByteTokenizer, JsonTokenizer, load_tokenizer


def test_bytes_round_trip() -> None:
    tokenizer = load_tokenizer("bytes")
    text = "def f(x):\r\n\treturn 'naïve — 🦊'\0"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == 257
    assert tokenizer.eos_id == 256
    assert ByteTokenizer().decode([104, 256, 105, 260]) == "hi", "the end of a document and padding are no text"
    assert ByteTokenizer().decode([0xC3]) == "\ufffd"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "<stop>": 1, "hello": 2, "world": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<stop>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<stop>"}}))
    return tmp_path


def test_json_tokenizer_and_its_end_token(folder: Path, tmp_path: Path) -> None:
    for path in (folder, folder / "tokenizer.json"):
        tokenizer = load_tokenizer(path)
        assert tokenizer.encode("hello world hello") == [2, 3, 2]
        assert tokenizer.decode([2, 3, 1]) == "hello world"
        assert (tokenizer.vocab_size, tokenizer.eos_id) == (4, 1)
    copy = tmp_path / "copy"
    copy.mkdir()
    tokenizer.save(copy)
    again = load_tokenizer(copy)
    assert again.eos_id == 1
    assert again.encode("world") == [3]


def test_wrong_tokenizers_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is no tokenizer at"):
        load_tokenizer(folder / "nowhere")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<gone>"}))
    with pytest.raises(ValueError, match="declares the eos_token '<gone>'"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"is not a tokenizer\.json that the tokenizers library can read"):
        load_tokenizer(folder)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install 'statescan\[hub\]'"):
        JsonTokenizer(folder / "tokenizer.json")
