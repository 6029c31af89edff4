"""Documents as one array of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from statescan.data.sources import Document, Source, read_documents, split_documents
from statescan.data.tokenizers import ByteTokenizer, Tokenizer


@dataclass(frozen=True)
class Corpus:
    """Token ids of documents, each between two end-of-document tokens: ``eos d1 eos d2 eos``.

    A document is read from its leading eos on: every one of its tokens is predicted from what precedes it in the document, the first
    from the eos alone, and last of all its end. The eos between two documents is the target that ends one and the input, with a
    reset of the state, that begins the next.
    """

    tokens: np.ndarray
    """(T,) unsigned integers."""
    offsets: np.ndarray
    """int64 (documents + 1,): where the leading eos of each document stands, and the last eos."""
    names: tuple[str, ...]
    n_bytes: int
    """Bytes of UTF-8 text that is predicted."""
    learned: np.ndarray | None = None
    """bool (T,): the tokens that are predicted. None: all but the first eos."""

    @property
    def n_targets(self) -> int:
        """Tokens to predict."""
        return int(self._targets_before[-1])

    @property
    def _targets_before(self) -> np.ndarray:
        """Tokens to predict up to each offset."""
        return self.offsets if self.learned is None else np.cumsum(self.learned)[self.offsets]

    @property
    def bytes_per_token(self) -> float:
        return self.n_bytes / self.n_targets

    def head(self, n_bytes: int) -> Corpus:
        """The shortest run of first documents with at least so many bytes (judged by tokens), or all."""
        targets = self._targets_before
        n = int(np.searchsorted(targets, int(n_bytes / self.bytes_per_token)).clip(1, len(self.names)))
        if n == len(self.names):
            return self
        cut = int(self.offsets[n])
        learned = None if self.learned is None else self.learned[: cut + 1]
        return Corpus(self.tokens[: cut + 1], self.offsets[: n + 1], self.names[:n], round(int(targets[n]) * self.bytes_per_token), learned)

    def __repr__(self) -> str:
        return f"Corpus({len(self.names)} documents, {self.n_bytes:,} bytes, {self.n_targets:,} tokens)"


def encode_documents(documents: Sequence[Document], tokenizer: Tokenizer) -> Corpus:
    """Documents to a :class:`Corpus`."""
    eos = tokenizer.eos_id
    if eos is None:
        raise ValueError(f"{tokenizer!r} has no end-of-document token: declare eos_token in the tokenizer_config.json beside it")
    kind = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    pieces, offsets, n_bytes = [np.array([eos], kind)], [0], 0
    learned = [np.array([False])]
    for document in documents:
        if document.learned is None:
            data = document.text.encode("utf-8")
            n_bytes += len(data)
            ids = np.frombuffer(data, np.uint8) if isinstance(tokenizer, ByteTokenizer) else np.array(tokenizer.encode(document.text))
            learn = np.ones(len(ids) + 1, np.bool_)
        else:
            n_bytes += sum(len(document.text[start:stop].encode("utf-8")) for start, stop in document.learned)
            ids, learn = _encode_learned(document, document.learned, tokenizer)
        pieces += [ids.astype(kind), pieces[0]]
        learned.append(learn)
        offsets.append(offsets[-1] + len(ids) + 1)
    some = any(document.learned is not None for document in documents)
    names = tuple(document.name for document in documents)
    return Corpus(np.concatenate(pieces), np.array(offsets, np.int64), names, n_bytes, np.concatenate(learned) if some else None)


def _encode_learned(document: Document, spans: Sequence[tuple[int, int]], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and which of them and of the eos behind them are predicted: those that reach into a span, and the eos behind the last one.

    The text is encoded in one piece, so its tokens are those of the whole, wherever spans begin. Where it ends with the eos itself, as
    some chat templates do, the corpus's own takes that place.
    """
    encoded, covers = tokenizer.spans(document.text)
    ids = np.array(encoded, np.int64)
    learn = np.zeros(len(ids) + 1, np.bool_)
    for start, stop in spans:
        learn[:-1] |= (covers[:, 1] > start) & (covers[:, 0] < stop)
    learn[-1] = spans[-1][1] >= len(document.text)
    return (ids[:-1], np.delete(learn, -2)) if len(ids) and ids[-1] == tokenizer.eos_id else (ids, learn)


def load_corpora(
    data: Source | Sequence[Source],
    tokenizer: Tokenizer,
    held_out: Source | Sequence[Source] | None = None,
    *,
    fraction: float = 0.05,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    separator: str | None = None,
) -> tuple[Corpus, Corpus]:
    """(training, held-out): by file name from ``data``, or ``held_out`` as given. No text is in both."""
    how: dict[str, Any] = {"include": include, "exclude": exclude, "separator": separator}
    test = None if held_out is None else read_documents(held_out, **how)
    return split_corpora(read_documents(data, **how), test, tokenizer, fraction)


def split_corpora(
    documents: Sequence[Document], held_out: Sequence[Document] | None, tokenizer: Tokenizer, fraction: float
) -> tuple[Corpus, Corpus]:
    """(training, held-out): some of the documents, by name, or those given, which are then not trained on."""
    if held_out is None:
        train, test = split_documents(documents, fraction)
    else:
        test = list(held_out)
        texts = {d.text for d in test}
        train = [d for d in documents if d.text not in texts]
        if not train:
            raise ValueError(f"every document, {documents[0].file} for one, is held out too: nothing is left to train on")
    return encode_documents(train, tokenizer), encode_documents(test, tokenizer)
