"""Text to token ids and back: bytes (built in), or a ``tokenizer.json`` of the tokenizers library."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from statescan.files import read_json, write_text


@runtime_checkable
class Tokenizer(Protocol):
    """What the library needs of a tokenizer. ``name`` is what a saved model's config.json says."""

    name: str
    vocab_size: int
    eos_id: int | None
    """Stands between documents; None where the tokenizer declares none."""

    def encode(self, text: str) -> list[int]: ...

    def spans(self, text: str) -> tuple[list[int], np.ndarray]:
        """``encode(text)``, and the characters of the text that each token covers: (T, 2), from and up to."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the files that :func:`load_tokenizer` needs, if any."""
        ...


class ByteTokenizer:
    """The 256 bytes of UTF-8, and 256 for the end of a document. Any text encodes and decodes exactly; a model may pad its vocabulary."""

    name = "bytes"
    vocab_size = 257
    eos_id: int | None = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def spans(self, text: str) -> tuple[list[int], np.ndarray]:
        """A character of several bytes is covered by each of them."""
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        lengths = 1 + (points >= 0x80).astype(int) + (points >= 0x800) + (points >= 0x10000)
        place = np.repeat(np.arange(len(points)), lengths)
        return self.encode(text), np.stack([place, place + 1], axis=1)

    def decode(self, ids: Sequence[int]) -> str:
        """Bytes that are no character become U+FFFD; ids that are no byte (the end of a document, padding) are left out."""
        return bytes(i for i in map(int, ids) if 0 <= i < 256).decode("utf-8", errors="replace")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Nothing to write: the name says it all."""

    def __repr__(self) -> str:
        return "ByteTokenizer()"


class JsonTokenizer:
    """A ``tokenizer.json``. The end of a document is the ``eos_token`` that the files beside it declare, else a customary one it has."""

    name = "tokenizer.json"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError(f"reading {path} needs the tokenizers library: pip install 'statescan[hub]'") from error
        self.path = Path(path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"{path} is not a tokenizer.json that the tokenizers library can read: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocab_size: int = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self._beside = {n: (self.path.parent / n).read_text(encoding="utf-8") for n in _BESIDE if (self.path.parent / n).is_file()}
        declared = {name: read_json(self.path.parent / name) for name in self._beside if name.endswith(".json")}
        self.special_tokens = _special_tokens(declared)
        """``eos_token``, ``bos_token`` and so on, as the files beside it declare them."""
        self.chat_template = self._beside.get("chat_template.jinja", _chat_template(declared))
        """The Jinja template of conversations, from chat_template.jinja or tokenizer_config.json; None where there is none."""
        eos = self.special_tokens.get("eos_token")
        names = _CUSTOMARY if eos is None else (eos,)
        self.eos_id: int | None = next((i for i in map(self._tokenizer.token_to_id, names) if i is not None), None)
        if eos is not None and self.eos_id is None:
            raise ValueError(f"{self.path.parent} declares the eos_token {eos!r}, which {self.path.name} does not have")

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def spans(self, text: str) -> tuple[list[int], np.ndarray]:
        """As the library reports them: without the spaces that a token swallows, where it says so."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, np.array(encoding.offsets, int).reshape(-1, 2)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """tokenizer.json and, where they stand beside it, the files that declare its special tokens."""
        write_text(Path(folder, "tokenizer.json"), self._tokenizer.to_str(pretty=True))
        for name, text in self._beside.items():
            write_text(Path(folder, name), text)

    def __repr__(self) -> str:
        return f"JsonTokenizer({str(self.path)!r})"


_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_CUSTOMARY = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")


def _special_tokens(declared: Mapping[str, Any]) -> dict[str, str]:
    """Name -> token; tokenizer_config.json has the last word."""
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in declared.get(file, {}).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


def _chat_template(declared: Mapping[str, Any]) -> str | None:
    template = declared.get("tokenizer_config.json", {}).get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    return template


def load_tokenizer(path: str | os.PathLike[str] = "bytes") -> Tokenizer:
    """``"bytes"``, or a tokenizer.json, or the folder that holds one."""
    if str(path) == "bytes":
        return ByteTokenizer()
    where = Path(path)
    file = where / "tokenizer.json" if where.is_dir() else where
    if not file.is_file():
        raise ValueError(f"there is no tokenizer at {file}: give 'bytes', a tokenizer.json, or a folder that holds one")
    return JsonTokenizer(file)
