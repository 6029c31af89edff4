"""The training loop, in one piece.

Everything that decides the weights is in the options, in the run's config.yaml, and in its checkpoints: killed at any moment and continued,
a run ends with the same bits.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from statescan import state as states
from statescan.data import Batch, Corpus, Windows, load_corpora, load_tokenizer
from statescan.files import read_safetensors, write_json, write_safetensors
from statescan.interop.pretrained import save_pretrained
from statescan.procedures.checkpoint import generators, read_optimizer, read_weights_into, set_generators, write_optimizer
from statescan.procedures.evaluate import evaluate_corpus, patterns
from statescan.procedures.guard import NonFiniteError, first_non_finite
from statescan.procedures.optim import make_optimizer, set_rate
from statescan.procedures.progress import Progress
from statescan.procedures.runs import RunFolder, read_training_state
from statescan.procedures.schedule import warmup_cosine
from statescan.spec import Spec

MAY_CHANGE = ("run", "resume", "log_every", "eval_every", "eval_bytes", "save_every", "keep", "quiet")
"""Options that a continued run may set anew: none of them changes a weight."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and did, behind a checkpoint. The message says how to continue."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    run: Path
    steps: int
    tokens: int
    seconds: float
    """Spent in this run, evaluations included, over all its continuations."""
    train_bits_per_byte: float
    """Of the last steps."""
    held_out_bits_per_byte: float
    """Of the whole held-out text, with the averaged weights if there is an EMA."""


class Training:
    """The parts of one run, and its loop."""

    def __init__(self, options: dict[str, Any]) -> None:
        _check(options)
        self.o = o = SimpleNamespace(**options)
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise ImportError("training needs accelerate: pip install 'statescan[train]'") from error
        self.accelerator: Any = Accelerator()
        accelerator = self.accelerator
        self.main = accelerator.is_main_process
        self.folder = RunFolder(o.run)
        self.tokenizer = load_tokenizer(o.tokenizer)
        self.train_corpus, self.held_out = load_corpora(
            o.data, self.tokenizer, o.held_out, fraction=o.held_out_fraction,
            include=patterns(o.include), exclude=patterns(o.exclude), separator=o.separator,
        )  # fmt: skip
        _seed(o.seed)
        built = o.model()
        if not hasattr(built, "vocab_size"):
            raise ValueError(f"{o.model.name} is not a language model: train takes a LanguageModel, for example mamba-tiny")
        if built.vocab_size < self.tokenizer.vocab_size:
            raise ValueError(
                f"the model's vocabulary has {built.vocab_size} entries, the tokenizer {self.tokenizer!r} {self.tokenizer.vocab_size}: "
                f"set --model.vocab_size={self.tokenizer.vocab_size}"
            )
        if o.gradient_checkpointing:
            built.backbone.gradient_checkpointing = True
        if self.main:
            self.folder.open(_plain(options), resume=o.resume, may_change=MAY_CHANGE)
        accelerator.wait_for_everyone()

        self.windows = Windows(
            self.train_corpus, o.batch_size, o.length, seed=o.seed, piece=o.piece,
            rank=accelerator.process_index, world_size=accelerator.num_processes,
        )  # fmt: skip
        self.optimizer = make_optimizer(built.to(accelerator.device), o.lr, o.betas, o.weight_decay)
        self.model = accelerator.prepare(built)
        self.bare: nn.Module = accelerator.unwrap_model(self.model)
        self.bare.tokenizer = self.tokenizer  # type: ignore[assignment]
        self.parameters = [p for p in self.bare.parameters() if p.requires_grad]
        self.ema = AveragedModel(self.bare, multi_avg_fn=get_ema_multi_avg_fn(o.ema)) if o.ema else None
        self.state: Any = None
        self.step, self.tokens, self.seconds, self.recent, self.last_measured = 0, 0, 0.0, math.nan, math.nan
        self.tokens_per_step = o.batch_size * o.length * o.accumulate * accelerator.num_processes
        self.nats_to_bpb = 1 / self.train_corpus.bytes_per_token / math.log(2)

    def run(self) -> TrainResult:
        o = self.o
        if o.resume:
            self._restore()
        if self.main:
            self.folder.begin_metrics(self.step)
        progress = Progress(o.steps, self.step, self.tokens_per_step, o.log_every, quiet=o.quiet or not self.main)
        progress.say(self._introduction())
        begun = time.perf_counter() - self.seconds
        self.model.train()
        with _stop_politely() as asked_to_stop:
            while self.step < o.steps:
                loss, norm = self._step()
                self.step += 1
                self.tokens += self.tokens_per_step
                bpb = loss * self.nats_to_bpb
                self.recent = bpb if math.isnan(self.recent) else 0.95 * self.recent + 0.05 * bpb
                end = self.step == o.steps
                log = progress.update(self.step, self.recent)
                measured = self._measure(progress, end) if end or _every(o.eval_every, self.step) else None
                self.seconds = time.perf_counter() - begun
                if (log or measured is not None) and self.main:
                    self._log(bpb, norm, progress.rate, measured)
                stop = self._any_process(asked_to_stop())
                if end or stop or _every(o.save_every, self.step):
                    self._save(progress)
                    progress.pause()
                if stop and not end:
                    progress.close()
                    raise Interrupted(f"stopped after step {self.step}; continue with: statescan train --resume {self.folder.path}")
        progress.close()
        return self._finish(progress)

    def _step(self) -> tuple[float, float]:
        """One optimiser step: (mean loss in nats per token, norm of the gradient)."""
        o = self.o
        set_rate(self.optimizer, warmup_cosine(self.step, o.steps, o.warmup, o.final_lr))
        total = 0.0
        batch, before = next(self.windows).to(self.accelerator.device), self.state
        for micro in range(o.accumulate):
            if micro:
                batch, before = next(self.windows).to(self.accelerator.device), self.state
            last = micro == o.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with self._autocast():
                    logits, after = self.model(batch.inputs, batch.timeline, state=before, return_state=True)
                loss = self.bare.loss(logits, batch.targets)  # type: ignore[operator]
                total += float(loss.detach()) / o.accumulate
                if not math.isfinite(total):
                    self._explain("loss", batch, before)
                self.accelerator.backward(loss / o.accumulate)
            self.state = states.detach(after) if o.carry_state else None
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            self._explain("gradient", batch, before)
        if o.clip:
            clip_grads_with_norm_(self.parameters, o.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update_parameters(self.bare)
        return total, float(norm)

    def _explain(self, what: str, batch: Batch, before: Any) -> None:
        """Stop, naming the first layer that is not finite. No optimiser step was taken, so no weight is spoilt by this one."""

        def forward() -> Any:
            with self._autocast():
                return self.bare(batch.inputs, batch.timeline, state=before, return_state=True)

        where = first_non_finite(self.bare, forward)
        latest = self.folder.latest()
        remedy = f"the latest checkpoint is {latest}" if latest else "there is no checkpoint yet"
        raise NonFiniteError(
            f"training stopped at step {self.step + 1}: the {what} is not finite; {where}. Nothing was written; {remedy}. "
            "A lower lr, a longer warm-up or a smaller clip may help"
        )

    def _measure(self, progress: Progress, whole: bool) -> float:
        corpus = self.held_out if whole else self.held_out.head(self.o.eval_bytes)
        bpb = evaluate_corpus(self._best(), corpus, context=self._autocast).bits_per_byte
        progress.say(f"step {self.step}: {bpb:.4f} bits per byte on {'all' if whole else 'some'} held-out text ({corpus.n_bytes:,} bytes)")
        progress.pause()
        self.last_measured = bpb
        return bpb

    def _best(self) -> nn.Module:
        return self.bare if self.ema is None else self.ema.module

    def _log(self, bpb: float, norm: float, rate: float, measured: float | None) -> None:
        lr = self.optimizer.param_groups[0]["lr"]
        self.folder.log(
            {"step": self.step, "seconds": self.seconds, "tokens": self.tokens, "lr": lr, "train_bpb": bpb, "grad_norm": norm,
             "tokens_per_second": rate, "held_out_bpb": measured}
        )  # fmt: skip

    # -- checkpoints ------------------------------------------------------------------------------------------------------------

    def _save(self, progress: Progress) -> None:
        carried = None if self.state is None else states.map_tensors(self.accelerator.gather, self.state)
        if not self.main:
            return

        def fill(folder: Path) -> None:
            save_pretrained(self.bare, folder, self.tokenizer)
            write_optimizer(folder / "optimizer.safetensors", self.bare, self.optimizer)
            if self.ema is not None:
                write_safetensors(folder / "ema.safetensors", dict(self.ema.module.named_parameters()))
            if carried is not None:
                states.save(carried, folder / "state.safetensors")
            tensors, plain = generators()
            write_safetensors(folder / "rng.safetensors", tensors)
            progress_made = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds, "recent": self.recent}
            updates = 0 if self.ema is None else int(self.ema.n_averaged)
            reading = {"data": _fingerprint(self.train_corpus), "position": self.windows.position}
            write_json(folder / "training.json", {**progress_made, "ema_updates": updates, **reading, "generators": plain})

        self.folder.write_checkpoint(self.step, fill, self.o.keep)
        self.folder.draw(progress.say)

    def _restore(self) -> None:
        folder = self.folder.latest()
        if folder is None:
            return  # stopped before the first checkpoint: the beginning is where it left off
        saved = read_training_state(folder)
        if saved["data"] != _fingerprint(self.train_corpus):
            raise ValueError(f"the text in {self.o.data} is not what {folder} was trained on: put it back, or begin a new run")
        read_weights_into(self.bare, folder / "model.safetensors")
        read_optimizer(folder / "optimizer.safetensors", self.bare, self.optimizer)
        if self.ema is not None:
            read_weights_into(self.ema.module, folder / "ema.safetensors")
            self.ema.n_averaged.fill_(saved["ema_updates"])
        if (folder / "state.safetensors").is_file():
            rows = self.o.batch_size
            first = self.accelerator.process_index * rows
            whole = states.load(folder / "state.safetensors", self.accelerator.device)
            self.state = states.map_tensors(lambda t: t[first : first + rows].clone(), whole)
        self.windows.position = saved["position"]
        self.step, self.tokens, self.seconds, self.recent = saved["step"], saved["tokens"], saved["seconds"], saved["recent"]
        set_generators(read_safetensors(folder / "rng.safetensors")[0], saved["generators"])

    def _finish(self, progress: Progress) -> TrainResult:
        """The trained model into the run folder."""
        o = self.o
        if math.isnan(self.last_measured):
            self._measure(progress, whole=True)  # a finished run was resumed
        if self.main:
            save_pretrained(self._best(), self.folder.path, self.tokenizer)
            progress.say(f"done: {self.folder.path} holds the model; try: statescan generate {self.folder.path} --prompt ...")
        return TrainResult(self.folder.path, o.steps, self.tokens, self.seconds, self.recent, self.last_measured)

    # -- small things -----------------------------------------------------------------------------------------------------------

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16) if self.o.precision == "bf16" else nullcontext()

    def _any_process(self, flag: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device)) > 0)

    def _introduction(self) -> str:
        count = sum(p.numel() for p in self.bare.parameters())
        again = f", from step {self.step}" if self.step else ""
        return (
            f"{count:,} parameters, {self.o.steps} steps of {self.tokens_per_step:,} tokens{again}; training on "
            f"{self.train_corpus.n_bytes:,} bytes in {len(self.train_corpus.names)} documents, {self.held_out.n_bytes:,} bytes held out"
        )


def _check(options: dict[str, Any]) -> None:
    """Impossible options, before anything is read or written."""
    positive = ("steps", "batch_size", "length", "accumulate", "lr", "log_every", "keep")
    not_negative = ("piece", "warmup", "weight_decay", "clip", "eval_every", "eval_bytes", "save_every")
    for name in positive:
        if not options[name] > 0:
            raise ValueError(f"{name} must be greater than 0; got {options[name]}")
    for name in not_negative:
        if not options[name] >= 0:
            raise ValueError(f"{name} must be 0 or more; got {options[name]}")
    for name, top in (("ema", 1), ("final_lr", 1), ("held_out_fraction", 1)):
        if not 0 <= options[name] <= top:
            raise ValueError(f"{name} must lie between 0 and 1; got {options[name]}")
    if options["ema"] == 1:
        raise ValueError("ema=1 would never move from the initial weights: 0.999 averages about the last 1000 steps")
    if options["precision"] not in ("fp32", "bf16"):
        raise ValueError(f"precision must be 'fp32' or 'bf16'; got {options['precision']!r}")
    if not all(0 <= beta < 1 for beta in options["betas"]):
        raise ValueError(f"betas must lie in [0, 1); got {tuple(options['betas'])}")
    if not 0 <= options["seed"] < 2**63:
        raise ValueError(f"seed must lie in 0..2^63-1; got {options['seed']}")
    if not isinstance(options["model"], Spec):
        raise ValueError(f"model must be a Spec: Spec(LanguageModel, ...), or find_model(name).spec; got {options['model']!r}")


def _plain(value: Any) -> Any:
    """The options as YAML can hold them, every default of the model written out."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items() if key != "resume"}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return _plain(value.to_dict()) if isinstance(value, Spec) else os.fspath(value) if isinstance(value, os.PathLike) else value


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _every(n: int, step: int) -> bool:
    return n > 0 and step % n == 0


def _fingerprint(corpus: Corpus) -> str:
    return hashlib.blake2b(np.ascontiguousarray(corpus.tokens).data, digest_size=16).hexdigest()


@contextmanager
def _stop_politely() -> Iterator[Callable[[], bool]]:
    """The first interrupt (Ctrl-C, or SIGTERM) is remembered, not raised; a second one is."""
    asked = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
