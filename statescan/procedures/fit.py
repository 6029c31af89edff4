"""Fit any model to a loss that is a function of the step: the short loop behind the estimators.

The loss of a step depends on the step's number alone (and on dropout, whose generator is kept), so a fit that was stopped goes on to the
same bits. The weights that did best on validation are what a fit ends with.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from statescan.files import read_safetensors, write_json, write_safetensors
from statescan.procedures.checkpoint import averages, generators, read_optimizer, read_weights_into, set_generators, write_optimizer
from statescan.procedures.guard import NonFiniteError, first_non_finite
from statescan.procedures.interrupt import Interrupted, stop_politely
from statescan.procedures.optim import make_optimizer, set_rate
from statescan.procedures.runs import RunFolder, read_training_state
from statescan.procedures.schedule import warmup_cosine


@dataclass(frozen=True)
class Schedule:
    """How to fit.

    Args:
        steps: optimiser steps.
        lr: peak learning rate of AdamW.
        warmup: steps of linear warm-up; a cosine to zero follows.
        betas: of AdamW's averages.
        weight_decay: of matrices.
        clip: largest norm of the gradient.
        eval_every: steps between validations.
        patience: validations without a better one after which the fit ends; 0 goes through all steps.
    """

    steps: int = 1000
    lr: float = 2e-3
    warmup: int = 50
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0
    eval_every: int = 100
    patience: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "lr", "clip", "eval_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0; got {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "patience"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more; got {getattr(self, name)}")


@dataclass
class Fitted:
    """How a fit went."""

    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    """Lowest validation."""
    best_step: int = 0
    recent: list[float] = field(default_factory=list)
    """Training losses since the last validation."""
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, training loss since the last row, validation)."""


def fit(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    validate: Callable[[], float] | None,
    schedule: Schedule,
    *,
    folder: RunFolder | None = None,
    quiet: bool = False,
    resume_with: str = "",
    report: Callable[[Fitted], None] | None = None,
) -> Fitted:
    """Fit, and leave the best weights in the model.

    Args:
        model: has ``parameter_groups``; its training mode is put back.
        loss_of: the loss of a step, from 0, to be lowered.
        validate: lower is better; called in eval mode without gradients. None keeps the last weights, and the training loss counts.
        schedule: how.
        folder: where checkpoints go, at every validation; one that is there already is continued.
        quiet: no progress bar.
        resume_with: the command that continues a stopped fit, for its message.
        report: called behind every validation.
    """
    o, was_training = schedule, model.training
    optimizer = make_optimizer(model, o.lr, o.betas, o.weight_decay)
    done = Fitted()
    best = _copy(model)
    latest = folder.latest() if folder else None
    if latest is not None:
        done, best = _restore(latest, model, optimizer)
    begun = time.perf_counter() - done.seconds
    with (
        tqdm(total=o.steps, initial=done.step, unit="step", disable=quiet or not sys.stderr.isatty(), leave=False) as bar,
        stop_politely() as asked_to_stop,
    ):
        while done.step < o.steps and not _patience_over(done, o):
            model.train()
            done.recent.append(take_step(model, optimizer, loss_of, done.step, o))
            done.step += 1
            bar.update()
            stop, end = asked_to_stop(), done.step == o.steps
            due = end or done.step % o.eval_every == 0
            if due:
                mean = value = sum(done.recent) / len(done.recent)
                if validate is not None:
                    model.eval()
                    with torch.no_grad():
                        value = validate()
                done.curve.append((done.step, mean, value))
                done.recent.clear()
                if validate is None or done.best is None or value < done.best:
                    done.best, done.best_step, best = value, done.step, _copy(model)
                if report is not None:
                    report(done)
                bar.set_postfix_str(f"loss {done.curve[-1][1]:.4g}, validation {value:.4g} (best {done.best:.4g})")
            done.seconds = time.perf_counter() - begun
            if folder and (due or stop):
                folder.write_checkpoint(done.step, functools.partial(_write, model, optimizer, done, best), 1)
            if stop and not end:
                kept = f"; continue with: {resume_with}" if folder and resume_with else ""
                raise Interrupted(f"stopped after step {done.step}{kept}")
    model.load_state_dict(best)
    model.train(was_training)
    return done


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[int], Tensor], step: int, o: Schedule) -> float:
    """One optimiser step, numbered from 0: its loss."""
    set_rate(optimizer, warmup_cosine(step, o.steps, o.warmup, 0.0))
    loss = loss_of(step)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = float(clip_grad_norm_(model.parameters(), o.clip))
    if not math.isfinite(norm) or not math.isfinite(float(loss.detach())):
        where = first_non_finite(model, functools.partial(loss_of, step))
        raise NonFiniteError(f"the fit stopped at step {step + 1}: {where}; a lower lr or a longer warm-up may help")
    optimizer.step()
    return float(loss.detach())


def _patience_over(done: Fitted, o: Schedule) -> bool:
    return bool(o.patience) and done.step - done.best_step >= o.patience * o.eval_every


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _write(model: nn.Module, optimizer: torch.optim.Optimizer, done: Fitted, best: dict[str, Tensor], folder: Path) -> None:
    write_safetensors(folder / "model.safetensors", _copy(model))
    write_safetensors(folder / "best.safetensors", best)
    write_optimizer(folder / "optimizer.safetensors", averages(model, optimizer))
    tensors, plain = generators()
    write_safetensors(folder / "rng.safetensors", tensors)
    write_json(folder / "training.json", {**vars(done), "generators": plain})


def _restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Fitted, dict[str, Tensor]]:
    saved = read_training_state(folder)
    read_weights_into(model, folder / "model.safetensors")
    read_optimizer(folder / "optimizer.safetensors", model, optimizer)
    set_generators(read_safetensors(folder / "rng.safetensors")[0], saved.pop("generators"))
    saved["curve"] = [tuple(row) for row in saved["curve"]]
    return Fitted(**saved), read_safetensors(folder / "best.safetensors")[0]
