"""How well a model predicts text: bits per byte of held-out documents, each read whole with its state carried from chunk to chunk."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from statescan import state as states
from statescan.data.corpus import Corpus, encode_documents
from statescan.data.sources import read_documents
from statescan.data.tokenizers import load_tokenizer
from statescan.data.windows import held_out_batches
from statescan.heads import LanguageModel


@dataclass(frozen=True)
class Evaluation:
    """What a corpus costs a model. The ends of documents are predicted and paid for too."""

    bits_per_byte: float
    """Total nats / bytes / ln 2: comparable between tokenizers, and with a compressor's output."""
    nats_per_token: float
    n_bytes: int
    n_tokens: int
    n_documents: int

    def __str__(self) -> str:
        return f"{self.bits_per_byte:.4f} bits per byte over {self.n_bytes:,} bytes in {self.n_documents} documents"


@torch.no_grad()
def evaluate_corpus(
    model: Any,
    corpus: Corpus,
    *,
    batch_size: int = 8,
    chunk: int = 512,
    reset_every_chunk: bool = False,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Evaluation:
    """Read every document once, in chunks: memory grows with ``batch_size * chunk`` only.

    ``reset_every_chunk`` forgets the state at every chunk (what a model without memory of its past would pay). ``context``: an
    autocast, say. The model's training mode is put back.
    """
    if batch_size < 1 or chunk < 1:
        raise ValueError(f"batch_size and chunk must be at least 1; got {batch_size} and {chunk}")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        state, nats = None, 0.0
        for batch in held_out_batches(corpus, batch_size, chunk):
            inputs, targets, timeline = batch.to(device)
            with context():
                logits, state = model(inputs, timeline, state=None if reset_every_chunk else state, return_state=True)
            state = states.trim(state)  # documents that have ended leave an attention cache
            nats += float(F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"))
    finally:
        model.train(was_training)
    return Evaluation(nats / corpus.n_bytes / math.log(2), nats / corpus.n_targets, corpus.n_bytes, corpus.n_targets, len(corpus.names))


def evaluate(
    model: str,
    data: str | list[str],
    include: str | list[str] = "*",
    exclude: str | list[str] | None = None,
    separator: str | None = None,
    tokenizer: str | None = None,
    batch_size: int = 8,
    chunk: int = 512,
    reset_every_chunk: bool = False,
) -> Evaluation:
    """Bits per byte of a saved model on text.

    Args:
        model: a model or run folder, or a hub id.
        data: a text file, a folder, or a list of them.
        include: file name patterns taken from folders.
        exclude: patterns of files and folders to leave out.
        separator: what stands between documents inside a file; without it a file is one document.
        tokenizer: "bytes", a tokenizer.json or its folder; by default the model's own.
        batch_size: documents read side by side.
        chunk: tokens read at a time; the state goes from chunk to chunk.
        reset_every_chunk: forget the state at every chunk.
    """
    from statescan.interop.pretrained import from_pretrained

    loaded = from_pretrained(model)
    if not isinstance(loaded, LanguageModel):
        raise ValueError(f"{model} is a {type(loaded).__name__}: bits per byte are those of a language model")
    chosen = loaded.tokenizer if tokenizer is None else load_tokenizer(tokenizer)
    if chosen is None:
        raise ValueError(f"{model} has no tokenizer: name one with tokenizer='bytes' or a tokenizer.json")
    documents = read_documents(data, patterns(include), patterns(exclude), separator)
    corpus = encode_documents(documents, chosen)
    return evaluate_corpus(loaded, corpus, batch_size=batch_size, chunk=chunk, reset_every_chunk=reset_every_chunk)


def patterns(value: str | list[str] | None) -> list[str]:
    """One pattern, several, or none, as a list."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)
