"""Five minutes from nothing to a model that writes Python: train on the standard library's own source, compare, sample."""

from __future__ import annotations

import gzip
import lzma
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from statescan.data import split_documents
from statescan.data.sources import read_documents
from statescan.interop.pretrained import from_pretrained
from statescan.procedures.generate import generate
from statescan.procedures.train import train
from statescan.spec import Spec

# What matters more than the model's shape is how many different places the text comes from: with a million and a half bytes to read, short
# windows of many rows, small batches and short pieces.
MODEL: Spec[Any] = Spec("LanguageModel", vocab_size=257, d_model=192, layers="M*4", parts={"M": Spec("Mamba", d_state=8)})
INCLUDE = ["*.py"]
EXCLUDE = ["test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"]
HELD_OUT_FRACTION = 0.05
PROMPT = "def "


@dataclass(frozen=True)
class DemoResult:
    """What the demo prints; all in bits per byte of the same held-out files."""

    run: Path
    model: float
    gzip: float
    xz: float
    n_bytes: int
    seconds: float


def demo(run: str = "runs/demo", steps: int = 2600, seed: int = 0, sample: int = 400, threads: int = 1) -> DemoResult:
    """Train a small byte-level Mamba on the Python standard library, a fixed number of steps (about four minutes on two cores).

    Then print what gzip -9 and xz -9 make of the same held-out files, and stream a sample. The run folder stays.

    Args:
        run: where; if it holds a run already, the next free name is taken.
        steps: optimiser steps.
        seed: of the initial weights, the order of documents and the sample.
        sample: bytes to write at the end; 0 writes none.
        threads: so small a model leaves a second thread little but waiting, and on a busy machine two are far slower than one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _run(run, steps, seed, sample)
    finally:
        torch.set_num_threads(before)


def _run(run: str, steps: int, seed: int, sample: int) -> DemoResult:
    begun = time.perf_counter()
    folder, library = free_folder(run), sysconfig.get_paths()["stdlib"]
    result = train(
        MODEL, library, str(folder), held_out_fraction=HELD_OUT_FRACTION, include=INCLUDE, exclude=EXCLUDE,
        steps=steps, batch_size=8, length=64, piece=1024, lr=3e-3, warmup=min(150, steps // 10 + 1), seed=seed,
        log_every=100, eval_every=0, save_every=1000,
    )  # fmt: skip
    held_out = held_out_bytes(library)
    found = DemoResult(
        run=folder,
        model=result.held_out_bits_per_byte,
        gzip=8 * len(gzip.compress(held_out, 9)) / len(held_out),
        xz=8 * len(lzma.compress(held_out, preset=9)) / len(held_out),
        n_bytes=len(held_out),
        seconds=time.perf_counter() - begun,
    )
    print(f"\nBits per byte of {found.n_bytes:,} held-out bytes of the standard library, in files that were not trained on:")
    for name, value in ((f"this model, after {result.seconds:.0f} s", found.model), ("gzip -9", found.gzip), ("xz -9", found.xz)):
        print(f"  {name:26}{value:6.3f}  {'#' * round(value * 20)}")
    if sample:
        print(f"\nIt continues {PROMPT!r}:\n")
        sys.stdout.write(PROMPT)
        for piece in generate(from_pretrained(folder), PROMPT, max_new_tokens=sample, temperature=0.7, seed=seed, stream=True):
            sys.stdout.write(piece)
            sys.stdout.flush()
        print()
    print(f"\nThe run is in {folder}. More of the same: statescan generate {folder} --prompt 'class '")
    return found


def held_out_bytes(library: str) -> bytes:
    """The held-out files, one behind the other: what the compressors see."""
    documents = read_documents(library, INCLUDE, EXCLUDE)
    return "".join(d.text for d in split_documents(documents, HELD_OUT_FRACTION)[1]).encode()


def free_folder(run: str) -> Path:
    """``run``, or ``run-2``, ``run-3`` ... where those hold runs."""
    names = [Path(run), *(Path(f"{run}-{i}") for i in range(2, 1000))]
    return next(folder for folder in names if not (folder / "config.yaml").exists())
