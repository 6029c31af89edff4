"""Reading, comparing and spoiling model folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor


def weights(folder: Path) -> dict[str, Tensor]:
    file = folder / "model.safetensors"
    return load_file(file) if file.exists() else torch.load(folder / "pytorch_model.bin", weights_only=True)


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def rewrite(folder: Path, *, drop: tuple[str, ...] = (), **changes: Any) -> None:
    data = {k: v for k, v in {**config(folder), **changes}.items() if k not in drop}
    (folder / "config.json").write_text(json.dumps(data))


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(a[k].view(torch.uint8), b[k].view(torch.uint8)) for k in a
    )


def word_tokenizer(folder: Path, words: int = 6) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {f"w{i}": i for i in range(words - 1)} | {"<end>": words - 1}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>", "tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder
