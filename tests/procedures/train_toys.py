"""A model, a folder of text and options that train in a second; and a run that kills itself, as a script."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import statescan  # noqa: F401 - registers the parts
from statescan.procedures import loop
from statescan.procedures.train import TrainResult, train
from statescan.spec import Spec

MODEL = Spec("LanguageModel", vocab_size=257, d_model=16, layers="M*2", parts={"M": Spec("Mamba2", d_state=8, headdim=8, chunk_size=16)})


def write_text(folder: Path) -> Path:
    """Twelve small files of a language that one can learn."""
    folder.mkdir(exist_ok=True)
    for i in range(12):
        (folder / f"{i}.py").write_text("".join(f"def f{i}_{j}(x):\n    return x + {j}\n\n" for j in range(12)))
    return folder


def run_toy(text: Path, run: Path, **options: Any) -> TrainResult:
    """Twelve steps with everything that a checkpoint must hold: moments, an average, a carried state, accumulation."""
    toy: dict[str, Any] = {"steps": 12, "batch_size": 2, "length": 24, "accumulate": 2, "ema": 0.8, "warmup": 3, "save_every": 4}
    toy |= {"held_out_fraction": 0.2, "log_every": 3, "eval_every": 6, "eval_bytes": 400, "piece": 100, "quiet": True}
    return train(MODEL, str(text), str(run), **{**toy, **options})


def kill_at_step(step: int) -> None:
    """No warning, no clean-up."""
    update = loop.Progress.update

    def update_or_die(self: Any, now: int, bits_per_byte: float) -> bool:
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(self, now, bits_per_byte)

    loop.Progress.update = update_or_die  # type: ignore[method-assign]


def kill_in_checkpoint(step: int) -> None:
    """In the middle of writing one."""
    write = loop.write_optimizer

    def write_or_die(path: Path, *rest: Any) -> None:
        write(path, *rest)
        if f"{step:08d}" in str(path):
            os.kill(os.getpid(), signal.SIGKILL)

    loop.write_optimizer = write_or_die  # type: ignore[assignment]


if __name__ == "__main__":
    text, run, where, at = sys.argv[1:]
    import torch

    torch.set_num_threads(1)
    {"step": kill_at_step, "checkpoint": kill_in_checkpoint}[where](int(at))
    run_toy(Path(text), Path(run))
