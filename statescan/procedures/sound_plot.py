"""Pictures of a run of ``statescan sound``: its learning curve, and sounds as waves and spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from statescan.files import replacing


def draw_curve(curve: Sequence[tuple[int, float, float]], floors: Mapping[str, float], path: Path) -> None:
    """Bits a sample against steps, of (step, training loss in nats, validation in bits); floors as lines."""
    figure = _figure((6.4, 4))
    axes = figure.add_subplot()
    steps, losses, values = zip(*curve, strict=True)
    axes.plot(steps, np.array(losses) / np.log(2), label="training")
    axes.plot(steps, values, marker="o", markersize=3, label="validation")
    for i, (name, bits) in enumerate(floors.items()):
        axes.axhline(bits, linestyle="--", linewidth=1, color=f"C{i + 2}", label=name)
    axes.set(xlabel="step", ylabel="bits a sample")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _write(figure, path)


def draw_sounds(waves: Mapping[str, Tensor], rate: int, path: Path) -> None:
    """Each wave (T,), a row: its samples, 40 milliseconds of them, and its spectrogram."""
    figure = _figure((12, 2.6 * len(waves)))
    rows = figure.subplots(len(waves), 3, squeeze=False, width_ratios=(3, 2, 3))
    for (name, wave), (whole, part, spectrum) in zip(waves.items(), rows, strict=True):
        seconds = np.arange(len(wave)) / rate
        whole.plot(seconds, wave, linewidth=0.4)
        whole.set(title=name, ylim=(-1, 1), xlim=(0, len(wave) / rate), xlabel="seconds")
        loudest = int(wave.abs().argmax())
        near = slice(max(0, loudest - rate // 50), loudest + rate // 50)
        part.plot(1000 * (seconds[near] - seconds[loudest]), wave[near], linewidth=0.8)
        part.set(title="around the loudest sample", xlabel="milliseconds")
        frames = spectrogram(wave, rate)
        spectrum.imshow(
            frames.T, origin="lower", aspect="auto", extent=(0, len(wave) / rate, 0, rate / 2000), vmin=-80, vmax=0, cmap="magma",
            interpolation="nearest",
        )  # fmt: skip
        spectrum.set(title="power, 80 dB", xlabel="seconds", ylabel="kHz")
    _write(figure, path)


def spectrogram(wave: Tensor, rate: int) -> Tensor:
    """Samples (T,) -> (frames, frequencies): decibels below the largest; windows of 16 milliseconds, a quarter of one apart."""
    size = max(16, 1 << (rate // 64).bit_length())
    padded = torch.nn.functional.pad(wave.double(), (0, max(0, size - len(wave))))
    power = torch.fft.rfft(padded.unfold(0, size, size // 4) * torch.hann_window(size, dtype=torch.float64)).abs().square()
    return 10 * torch.log10(power.clamp_min(1e-20) / power.max().clamp_min(1e-12))


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'statescan[plots]', or --plot false") from error
    return Figure(figsize=size, layout="constrained")


def _write(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
