"""Windows: every target follows its input inside its own document, every token is met once an epoch, and the position resumes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from statescan.data import ByteTokenizer, Corpus, Document, Windows, encode_documents, held_out_batches, load_corpora

EOS = 256


def corpus(sizes: list[int]) -> Corpus:
    """Documents whose text tells where one is: a letter for the document, repeated."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return encode_documents([Document(letters[i], letters[i] * n, Path(letters[i])) for i, n in enumerate(sizes)], ByteTokenizer())


def test_the_layout() -> None:
    c = corpus([2, 3])
    assert c.tokens.tolist() == [EOS, 97, 97, EOS, 98, 98, 98, EOS]
    assert c.offsets.tolist() == [0, 3, 7]
    assert (c.n_bytes, c.n_targets) == (5, 7)
    assert c.head(1).tokens.tolist() == [EOS, 97, 97, EOS]
    assert c.tokens.dtype == np.uint16


@pytest.mark.parametrize(("rows", "length", "piece"), [(1, 1, 0), (3, 7, 0), (2, 5, 4), (4, 64, 6)])
def test_no_window_leaks(rows: int, length: int, piece: int) -> None:
    c = corpus([1, 9, 4, 17, 2])
    windows = Windows(c, rows, length, seed=1, piece=piece)
    streams: list[list[tuple[int, int, bool]]] = [[] for _ in range(rows)]
    for _ in range(1 + 3 * c.n_targets // (rows * length)):
        batch = next(windows)
        assert batch.inputs.shape == batch.targets.shape == batch.timeline.reset.shape == (rows, length)
        for row in range(rows):
            streams[row] += zip(batch.inputs[row].tolist(), batch.targets[row].tolist(), batch.timeline.reset[row].tolist(), strict=True)
    met = {}
    for stream in streams:
        here = None
        for x, y, reset in stream:
            if reset or here is None:
                here = y if x == EOS else x
            assert x in (EOS, here), "an input belongs to another document than its predecessors, without a reset"
            assert y in (EOS, here), "a target belongs to another document than its input"
            assert not (x == EOS and not reset), "a document begins without a reset"
            met[y] = met.get(y, 0) + 1
        previous = stream[0]
        for current in stream[1:]:
            assert current[2] or current[0] == previous[1], "without a reset, a window goes on where the last one ended"
            previous = current
    assert set(met) >= {97, 98, 99, 100, 101, EOS}


def test_an_epoch_meets_every_token_once() -> None:
    c = corpus([5, 11, 3, 8])
    windows = Windows(c, 1, 1, piece=4)
    targets = sorted(int(next(windows).targets) for _ in range(c.n_targets))
    assert targets == sorted(c.tokens[1:].tolist())
    first, second = Windows(c, 1, c.n_targets, seed=3), Windows(c, 1, c.n_targets, seed=4)
    a, b, again = next(first).inputs, next(second).inputs, next(first).inputs
    assert not torch.equal(a, b), "the seed changes the order"
    assert not torch.equal(a, again), "so does the epoch"


def test_the_position_resumes() -> None:
    c = corpus([5, 11, 3, 8])
    windows = Windows(c, 3, 4, piece=6)
    for stop in range(0, 40, 7):
        for _ in range(stop):
            next(windows)
        saved = json.loads(json.dumps(windows.position))
        other = Windows(c, 3, 4, piece=6)
        other.position = saved
        for _ in range(5):
            a, b = next(windows), next(other)
            assert torch.equal(a.inputs, b.inputs)
            assert torch.equal(a.targets, b.targets)
            assert torch.equal(a.timeline.reset, b.timeline.reset)
    with pytest.raises(ValueError, match="the batch size or the number of processes has changed"):
        Windows(c, 2, 4, piece=6).position = saved


def test_processes_share_a_batch() -> None:
    c = corpus([5, 11, 3, 8])
    whole, parts = Windows(c, 4, 5), [Windows(c, 2, 5, rank=r, world_size=2) for r in range(2)]
    for _ in range(6):
        assert torch.equal(next(whole).inputs, torch.cat([next(p).inputs for p in parts]))


@pytest.mark.parametrize(("rows", "length"), [(1, 3), (3, 4), (9, 100)])
def test_held_out_text_is_read_once(rows: int, length: int) -> None:
    c = corpus([5, 11, 3, 8])
    targets, resets = [], 0
    for batch in held_out_batches(c, rows, length):
        exists = batch.targets >= 0
        assert batch.timeline.mask is not None or bool(exists.all())
        if batch.timeline.mask is not None:
            assert torch.equal(batch.timeline.mask, exists)
        targets += batch.targets[exists].tolist()
        resets += int(batch.timeline.reset.sum())
    assert sorted(targets) == sorted(c.tokens[1:].tolist())
    assert resets == 4


def test_held_out_text_given_by_name_is_never_trained_on(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(f"document {name}")
    train, held_out = load_corpora(tmp_path, ByteTokenizer(), tmp_path / "b")
    assert (train.names, held_out.names) == (("a", "c"), ("b",))
    with pytest.raises(ValueError, match="nothing is left to train on"):
        load_corpora(tmp_path / "b", ByteTokenizer(), tmp_path)


def test_a_tokenizer_without_an_end_cannot_pack() -> None:
    class Endless(ByteTokenizer):
        eos_id = None

    with pytest.raises(ValueError, match="no end-of-document token"):
        encode_documents([Document("a", "a", Path("a"))], Endless())
