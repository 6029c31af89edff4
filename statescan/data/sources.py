"""Where text comes from: files, folders and lists of them, read as documents, and split by name into training and held-out."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from statescan.registry import nearest

Source = str | os.PathLike[str]


class Document(NamedTuple):
    """A text and its name: the path below the folder it was found in, with the document's number where a file holds several."""

    name: str
    text: str
    file: Path
    learned: tuple[tuple[int, int], ...] | None = None
    """Spans of characters that a model is to predict; what stands outside is only read. None: all of it."""


def find_files(sources: Source | Sequence[Source], include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> list[tuple[str, Path]]:
    """(name, path) of every file, in a stable order; a folder is searched to any depth.

    A file is taken if its name fits one of ``include``, and no part of its path below the folder fits one of ``exclude``; hidden
    files and folders are passed over. A file that is named itself is always taken. A file reached twice is taken once.
    """
    found: dict[Path, str] = {}
    for source in [sources] if isinstance(sources, (str, os.PathLike)) else sources:
        root = Path(source).expanduser()
        if root.is_file():
            found.setdefault(root.resolve(), root.name)
            continue
        if not root.is_dir():
            beside = [p.name for p in root.parent.iterdir()] if root.parent.is_dir() else []
            hint = nearest(root.name, beside) if beside else f": {root.parent} does not exist either"
            raise ValueError(f"there is no file or folder {root}{hint}")
        before = len(found)
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(f for f in folders if not f.startswith(".") and not _fits(f, exclude))
            for file in sorted(files):
                if not file.startswith(".") and _fits(file, include) and not _fits(file, exclude):
                    path = Path(folder, file)
                    found.setdefault(path.resolve(), path.relative_to(root).as_posix())
        if len(found) == before:
            raise ValueError(f"{root} holds no file that fits include={list(include)} and not exclude={list(exclude)}")
    if not found:
        raise ValueError("no source of text was given: expected a file, a folder, or a list of them")
    return [(name, path) for path, name in found.items()]


def read_documents(
    sources: Source | Sequence[Source],
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    separator: str | None = None,
) -> list[Document]:
    """Every document. One file is one document, or several where ``separator`` (``"<|endoftext|>"``) stands between them.

    A text that occurs again, under whatever name, is left out, so that no held-out document is also trained on. An empty file is
    passed over in a folder and refused where it is named itself. A file that is not text is refused.
    """
    documents, seen = [], set()
    files = find_files(sources, include, exclude)
    for name, path in files:
        for document in documents_of(name, path, separator):
            digest = hashlib.blake2b(document.text.encode(), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                documents.append(document)
    if not documents:
        what = f"{files[0][1]} is empty" if len(files) == 1 else f"all {len(files)} files are empty, {files[0][1]} for one"
        raise ValueError(f"{what}: there is no text to read")
    return documents


def documents_of(name: str, path: Path, separator: str | None) -> list[Document]:
    """The documents of one file that are not blank."""
    text = read_text(path)
    pieces = text.split(separator) if separator else [text]
    return [Document(f"{name}#{i}" if len(pieces) > 1 else name, piece, path) for i, piece in enumerate(pieces) if piece.strip()]


def read_text(path: Source) -> str:
    """A file as UTF-8 text; what is not text is a ValueError with the place of the first byte that is none. Line ends stay as they are."""
    data = Path(path).read_bytes()
    nul = data.find(b"\0")
    if nul >= 0:
        raise ValueError(f"{path} is not text: it has a NUL byte at offset {nul}; leave it out with include or exclude")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}; convert it, or leave it out with exclude"
        ) from None


def split_documents(documents: Sequence[Document], fraction: float) -> tuple[list[Document], list[Document]]:
    """(training, held-out), by a hash of the file's name: a file stays on its side whatever else comes or goes.

    All documents of a file fall on one side. With few files each side still gets one; a single file of many documents is split by
    document, and a single document keeps its tail for held-out, from the beginning of a line.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the held-out fraction must lie between 0 and 1; got {fraction}")
    if len(documents) == 1:
        return _split_tail(documents[0], fraction)
    by_file = len({d.file for d in documents}) > 1
    place = {d.name: place_of(d.name.rpartition("#")[0] or d.name if by_file else d.name) for d in documents}
    ordered = sorted(set(place.values()))
    if len(ordered) < 2:
        raise ValueError(
            f"all {len(documents)} documents have the same name, {documents[0].name}: give them different ones, or held-out files"
        )
    bound = min(max(fraction, ordered[1]), ordered[-1])
    return [d for d in documents if place[d.name] >= bound], [d for d in documents if place[d.name] < bound]


def _split_tail(document: Document, fraction: float) -> tuple[list[Document], list[Document]]:
    if document.learned is not None:
        raise ValueError(f"{document.file} holds a single example, of which no part can be held out: give more, or other files as held_out")
    cut = int(len(document.text) * (1 - fraction))
    cut = document.text.rfind("\n", 0, cut) + 1 or cut
    if not 0 < cut < len(document.text):
        raise ValueError(f"{document.file} is too short to hold a part of it out: {len(document.text)} characters")
    head, tail = document.text[:cut], document.text[cut:]
    return [document._replace(text=head)], [document._replace(name=f"{document.name} (tail)", text=tail)]


def place_of(name: str) -> float:
    """Where a hash puts a name in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
