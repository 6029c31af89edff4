"""Sound from a sound model, sample by sample, at constant memory; and how likely given sound is."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from statescan.data.waves import Waves, read_mono, whole, write_wav
from statescan.engine.sound import SoundDecoder
from statescan.heads.logistic_mixture import LogisticMixture
from statescan.heads.sound import SoundModel
from statescan.procedures.sampling import row_generators

NOISE = 1024
"""Samples for which random numbers are drawn at once."""


class Sounds(NamedTuple):
    """What was generated."""

    levels: Tensor
    """int64 (rows, samples), without the prompt"""
    seconds: float
    """Spent on generating, the prompt not counted"""


@torch.inference_mode()
def generate_sound(
    model: SoundModel,
    samples: int,
    *,
    rows: int = 1,
    prompt: Tensor | None = None,
    temperature: float = 1.0,
    seed: int | Sequence[int] | None = None,
    quiet: bool = True,
) -> Sounds:
    """``samples`` levels of each of several rows, behind silence or a prompt.

    Args:
        model: in eval mode, on the CPU.
        samples: how many.
        rows: sounds made side by side, which costs little more than one.
        prompt: levels (T,) that all rows continue.
        temperature: divides the logits; of a mixture, it multiplies the scales too. 0 takes the likeliest level.
        seed: row i draws from ``seed + i``, or from ``seed[i]``; what a row says does not depend on its neighbours.
        quiet: no progress bar.
    """
    if samples < 1 or rows < 1:
        raise ValueError(f"samples and rows must be at least 1; got {samples} and {rows}")
    if not (temperature >= 0 and np.isfinite(temperature)):
        raise ValueError(f"temperature must be a number >= 0 (0 takes the likeliest level); got {temperature}")
    if prompt is not None and (prompt.ndim != 1 or not len(prompt)):
        raise ValueError(f"a prompt is levels of shape (T,), at least one; got {tuple(prompt.shape)}")
    if next(model.parameters()).device.type != "cpu":
        raise ValueError("sound is generated on the CPU: model.cpu()")
    decoder = SoundDecoder(model, rows)
    generators = row_generators(seed, rows)
    outputs = decoder.step(torch.full((rows,), model.silence))
    for level in [] if prompt is None else prompt.tolist():
        outputs = decoder.step(torch.full((rows,), level))
    levels = torch.empty(rows, samples, dtype=torch.long)
    begun = time.perf_counter()
    with tqdm(total=samples, unit="sample", disable=quiet or not sys.stderr.isatty(), leave=False) as bar:
        for t in range(samples):
            at = t % NOISE
            if at == 0:
                noise = torch.stack([torch.rand(NOISE, 2, generator=g, dtype=torch.float64) for g in generators], 1)
                bar.update(min(t, NOISE))
            chosen = choose(model, outputs, noise[at], temperature)
            levels[:, t] = chosen
            if t + 1 < samples:
                outputs = decoder.step(chosen)
    return Sounds(levels, time.perf_counter() - begun)


def choose(model: SoundModel, outputs: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Levels (B,) from the model's outputs and ``noise`` (B, 2) in [0, 1)."""
    if model.components:
        return LogisticMixture.of(outputs, model.levels).sample(noise, model.levels, temperature)
    if temperature == 0:
        return outputs.argmax(-1)
    cumulative = (outputs.double() if temperature == 1 else outputs.double() / temperature).softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, noise[:, :1] * cumulative[:, -1:], right=True).squeeze(-1)


@torch.no_grad()
def nats_of(model: SoundModel, waves: Waves, chunk: int = 16384, budget: int = 65536) -> np.ndarray:
    """(n,): -log P of each recording from its first sample on.

    Recordings of like length are read side by side, ``chunk`` positions at once. The model's training mode is put back.
    """
    was_training = model.training
    model.eval()
    order = np.argsort(waves.lengths, kind="stable")[::-1]
    found = np.zeros(len(order))
    try:
        while len(order):
            rows = order[: max(1, budget // int(waves.lengths[order[0]]))]
            order = order[len(rows) :]
            inputs, targets = whole(waves, rows.tolist(), model.silence)
            state: Any = None
            for start in range(0, inputs.shape[1], chunk):
                part = slice(start, start + chunk)
                more = start + chunk < inputs.shape[1] or state is not None
                outputs = model(inputs[:, part], state=state, return_state=more)
                outputs, state = outputs if more else (outputs, None)
                found[rows] += model.nll(outputs, targets[:, part]).sum(1, dtype=torch.float64).numpy()
    finally:
        model.train(was_training)
    return found


def bits_per_sample(model: SoundModel, waves: Waves) -> float:
    """Of all recordings together."""
    return float(nats_of(model, waves).sum() / np.log(2) / len(waves.levels))


def write_sound(
    model: SoundModel,
    out: str | None,
    seconds: float | None,
    prompt_file: str | None,
    temperature: float,
    seed: int | None,
    rows: int,
) -> str:
    """``statescan generate`` of a sound model: wav files, and a line about them."""
    path = Path("sample.wav" if out is None else out)
    if path.suffix.lower() != ".wav":
        raise ValueError(f"out must be a .wav file; got {path}")
    seconds = 2.0 if seconds is None else seconds
    samples = round(seconds * model.rate)
    if samples < 1:
        raise ValueError(f"seconds must be positive; got {seconds}")
    wave = torch.zeros(0) if prompt_file is None else read_mono(prompt_file, model.rate)
    prompt = model.encode(wave) if len(wave) else None
    made = generate_sound(model, samples, rows=rows, prompt=prompt, temperature=temperature, seed=seed, quiet=False)
    files = [path if rows == 1 else path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(rows)]
    for file, row in zip(files, made.levels, strict=True):
        write_wav(file, torch.cat([wave, model.decode(row)]), model.rate)
    names = ", ".join(str(file) for file in files)
    behind = f" behind {len(wave) / model.rate:.2f} s of {prompt_file}" if prompt_file else ""
    return f"{names}: {seconds:g} s{behind}, {rows * samples / made.seconds:,.0f} samples a second"
