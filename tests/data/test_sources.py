"""Sources: what is read, what is passed over, what is refused, and which side of the split a file falls on."""

from __future__ import annotations

from pathlib import Path

import pytest

from statescan.data import find_files, read_documents, split_documents


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {"a.py": "x = 1\n", "sub/b.py": "y = 2\n", "sub/c.txt": "prose\n", "tests/d.py": "z\n", ".git/e.py": "no\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_folders_are_searched_to_any_depth(folder: Path) -> None:
    assert [name for name, _ in find_files(folder)] == ["a.py", "sub/b.py", "sub/c.txt", "tests/d.py"]
    assert [name for name, _ in find_files(folder, ["*.py"], ["tests"])] == ["a.py", "sub/b.py"]
    listed = find_files([folder / "sub", folder / "sub" / "b.py", folder / "a.py"])
    assert [name for name, _ in listed] == ["b.py", "c.txt", "a.py"], "a file reached twice is taken once"


def test_a_missing_path_suggests_its_neighbour(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no file or folder .*a\.pi; did you mean 'a\.py'\?"):
        read_documents(folder / "a.pi")
    with pytest.raises(ValueError, match="does not exist either"):
        read_documents(folder / "nowhere" / "a.py")
    with pytest.raises(ValueError, match="no file that fits include"):
        read_documents(folder, ["*.md"])
    with pytest.raises(ValueError, match="no source of text"):
        read_documents([])


def test_what_is_not_text_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "nul.bin").write_bytes(b"text\0more")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"nul\.bin is not text: it has a NUL byte at offset 4"):
        read_documents(tmp_path / "nul.bin")
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8 text: byte 0xe9 at offset 3"):
        read_documents(tmp_path / "latin.txt")
    with pytest.raises(ValueError, match=r"empty\.txt is empty"):
        read_documents(tmp_path / "empty.txt")
    (tmp_path / "good.txt").write_bytes(b"good\r\n")
    documents = read_documents(tmp_path, exclude=["nul.bin", "latin.txt"])
    assert [d.text for d in documents] == ["good\r\n"], "an empty file in a folder is passed over; line ends stay as they are"


def test_documents_inside_a_file_and_copies(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("first<|end|>second<|end|>\n")
    (tmp_path / "two.txt").write_text("second")
    documents = read_documents(tmp_path, separator="<|end|>")
    assert [(d.name, d.text) for d in documents] == [("one.txt#0", "first"), ("one.txt#1", "second")]


def test_the_split_is_stable_and_never_overlaps(tmp_path: Path) -> None:
    for i in range(200):
        (tmp_path / f"{i}.txt").write_text(f"document {i}")
    documents = read_documents(tmp_path)
    train, held_out = split_documents(documents, 0.1)
    assert {d.name for d in train} | {d.name for d in held_out} == {d.name for d in documents}
    assert not {d.text for d in train} & {d.text for d in held_out}
    assert 8 <= len(held_out) <= 32
    fewer = [d for d in documents if not d.name.startswith("1")]
    assert {d.name for d in split_documents(fewer, 0.1)[1]} == {d.name for d in held_out if not d.name.startswith("1")}
    assert [d.name for d in held_out][:3] == ["104.txt", "129.txt", "138.txt"], "the hash is part of what a published figure means"


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
def test_each_side_gets_something(tmp_path: Path, fraction: float) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"document {i}")
    train, held_out = split_documents(read_documents(tmp_path), fraction)
    assert train
    assert held_out


def test_all_documents_of_a_file_fall_on_one_side(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text("|".join(f"{i} {j}" for j in range(5)))
    train, held_out = split_documents(read_documents(tmp_path, separator="|"), 0.3)
    assert held_out
    assert not {d.file for d in train} & {d.file for d in held_out}


def test_a_single_file_keeps_its_tail(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("".join(f"line {i}\n" for i in range(100)))
    (document,) = read_documents(tmp_path / "one.txt")
    (head,), (tail,) = split_documents([document], 0.1)
    assert head.text + tail.text == document.text
    assert tail.text.startswith("line ")
    assert 0.05 < len(tail.text) / len(document.text) < 0.15
