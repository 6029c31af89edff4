"""``statescan sound``: recordings in; a trained model of sound, its bits a sample beside the floors, and what it sounds like, out.

::

    run/
      config.yaml, environment.json   the options; the machine
      metrics.csv, curve.png          bits a sample, while training
      table.md, scores.json           bits a sample of the held-out recordings, beside the floors; of each generated one too
      samples/sample-0.wav ...        generated
      sound.png                       a held-out recording and a generated one, as waves and spectra
      config.json, model.safetensors  the model: `statescan generate run --seconds 2 --out more.wav`
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from statescan.data.waves import Waves, crops, read_waves, split_waves, write_wav
from statescan.files import write_json, write_text
from statescan.heads.sound import SoundModel
from statescan.interop.pretrained import save_pretrained
from statescan.procedures.fit import Fitted, Schedule, fit
from statescan.procedures.options import plain
from statescan.procedures.runs import RunFolder, digest
from statescan.procedures.sound_floors import ORDER, counted, lstm_like, predicted
from statescan.procedures.sound_generate import bits_per_sample, generate_sound, nats_of
from statescan.procedures.sound_plot import draw_curve, draw_sounds
from statescan.spec import Spec

MAY_CHANGE = ("run", "floor_steps", "samples", "seconds", "temperature", "plot", "quiet")
NATS_TO_BITS = 1 / np.log(2)


@dataclass(frozen=True)
class Sounded:
    """What a run left behind."""

    run: Path
    bits: Mapping[str, float]
    """Who -> bits a sample of the held-out recordings."""
    parameters: Mapping[str, int]
    seconds: Mapping[str, float]
    """Who -> spent on training."""
    samples: Mapping[str, float]
    """Generated file -> its bits a sample under the model."""
    samples_per_second: float
    """Of generating, all rows together."""
    held_out: str

    def __str__(self) -> str:
        made = ", ".join(f"{name} ({bits:.2f} bits a sample)" for name, bits in self.samples.items())
        generated = f"\ngenerated {made}, {self.samples_per_second:,.0f} samples a second" if made else ""
        return f"{self.table()}\n\n{self.held_out}{generated}\nmore: statescan generate {self.run} --seconds 2 --out more.wav"

    def table(self) -> str:
        """Markdown."""
        lines = ["| model | parameters | seconds | bits a sample |", "|---|--:|--:|--:|"]
        for name, value in self.bits.items():
            counts = [f"{self.parameters[name]:,}", f"{self.seconds[name]:.0f}"] if name in self.parameters else ["", ""]
            lines.append(f"| {' | '.join([name, *counts, f'{value:.3f}'])} |")
        return "\n".join(lines)


def sound(
    data: str,
    run: str,
    model: Spec[Any],
    held_out: str | None = None,
    held_out_fraction: float = 0.1,
    val_fraction: float = 0.02,
    steps: int = 1000,
    batch_size: int = 8,
    length: int = 2048,
    lr: float = 4e-3,
    warmup: int = 50,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    eval_every: int = 100,
    patience: int = 0,
    floor_steps: int | None = None,
    samples: int = 3,
    seconds: float = 2.0,
    temperature: float = 1.0,
    plot: bool = True,
    seed: int = 0,
    quiet: bool = False,
    resume: bool = False,
) -> Sounded:
    """Train a model of sound on wav files: bits a sample beside the floors, and sounds that it makes.

    Args:
        data: a wav file, or a folder of them at any depth; resampled to the model's rate, channels averaged.
        run: folder for all that comes out.
        model: a registered sound model's name, for example sashimi-small, or a Spec of one; --model.rate=8000 changes it inside.
        held_out: a regular expression over names of files to measure on; by default some, by a hash of the name.
        held_out_fraction: how many, about; of a single recording, its tail.
        val_fraction: of the others, to decide which weights were best.
        steps: optimiser steps.
        batch_size: crops a step.
        length: samples a crop.
        lr: peak learning rate of AdamW; systems learn at their own, lower one.
        warmup: steps of linear warm-up; a cosine to zero follows.
        weight_decay: of matrices.
        clip: largest norm of the gradient.
        eval_every: steps between validations and checkpoints.
        patience: validations without progress after which training ends; 0 goes through all steps.
        floor_steps: steps of an LSTM of equal size on the same crops, beside; by default as many, 0 for none.
        samples: sounds to generate.
        seconds: of each.
        temperature: of generating.
        plot: draw curve.png and sound.png.
        seed: of weights, crops and sounds.
        quiet: say nothing.
        resume: continue the run in this folder, to the same bits as if it had never stopped.
    """
    options = {name: value for name, value in locals().items() if name != "resume"}
    if not 0 < held_out_fraction < 1 or not 0 < val_fraction < 1:
        raise ValueError(f"held_out_fraction and val_fraction must lie between 0 and 1; got {held_out_fraction} and {val_fraction}")
    if floor_steps is not None and floor_steps < 0:
        raise ValueError(f"floor_steps must be 0 or more; got {floor_steps}")
    if batch_size < 1 or length < 2 or samples < 0 or not seconds > 0:
        given = f"{batch_size}, {seconds}, {length} and {samples}"
        raise ValueError(f"batch_size and seconds must be positive, length 2 or more, samples 0 or more; got {given}")
    schedule = Schedule(steps, lr, warmup, (0.9, 0.98), weight_decay, clip, eval_every, patience)
    torch.manual_seed(seed)
    net = model()
    if not isinstance(net, SoundModel):
        raise ValueError(f"{model.name} is not a model of sound: sound takes a SoundModel, for example sashimi-small")
    every = read_waves(data, net.rate, net.encode, net.levels)
    others, tested = split_waves(every, held_out, held_out_fraction)
    taught, checked = split_waves(others, None, val_fraction, salt="validation ")
    folder = RunFolder(run, "sound")
    folder.open(plain(options), resume=resume, may_change=MAY_CHANGE, data=digest([every.levels, every.offsets, list(every.names)]))
    say: Callable[[str], None] = (lambda line: None) if quiet else (lambda line: print(line, file=sys.stderr, flush=True))
    say(
        f"{len(taught.names)} recordings to learn from ({taught.seconds:,.0f} s at {net.rate} Hz), {len(checked.names)} to check on, "
        f"{len(tested.names)} held out ({tested.seconds:,.0f} s); {_size(net):,} parameters, {steps} steps of {batch_size * length:,}"
    )
    floors = counted(taught, tested, net.levels) | {f"linear prediction from {ORDER}": predicted(taught, tested, net, seed)}
    say("; ".join(f"{name} {value:.3f}" for name, value in floors.items()) + " bits a sample")
    again, own = f"statescan sound --resume {run}", type(net.network).__name__
    nets, fits = {own: net}, {own: _train(net, taught, checked, schedule, options, folder, again, say, floors if plot else None)}
    save_pretrained(net.eval(), run)
    if floor_steps != 0:
        torch.manual_seed(seed)
        nets["LSTM"] = beside = lstm_like(net)
        say(f"trained in {fits[own].seconds:.0f} s; now an LSTM of {_size(beside):,} parameters")
        shorter = replace(schedule, steps=floor_steps or steps)
        fits["LSTM"] = _train(beside, taught, checked, shorter, options, RunFolder(Path(run) / f"lstm-{shorter.steps}"), again, say, None)
    bits = {name: bits_per_sample(one, tested) for name, one in nets.items()} | floors
    made, speed = _hear(net, Path(run), samples, seconds, temperature, seed)
    result = Sounded(
        Path(run), dict(sorted(bits.items(), key=lambda item: item[1])), {name: _size(one) for name, one in nets.items()},
        {name: done.seconds for name, done in fits.items()}, {name: value for name, (value, _) in made.items()}, speed,
        f"{len(tested.names)} recordings held out, {tested.seconds:,.1f} s",
    )  # fmt: skip
    write_text(Path(run) / "table.md", result.table() + "\n")
    write_json(
        Path(run) / "scores.json",
        {"bits_per_sample": dict(result.bits), "parameters": dict(result.parameters), "seconds": dict(result.seconds),
         "generated": dict(result.samples), "generated_samples_per_second": speed, "best_step": fits[own].best_step},
    )  # fmt: skip
    if plot:
        longest = int(tested.lengths.argmax())
        shown = {f"held out: {tested.names[longest]}": net.decode(torch.from_numpy(tested.recording(longest).astype(np.int64)))}
        shown |= {f"generated: {name}": wave for name, (_, wave) in list(made.items())[:2]}
        draw_sounds(shown, net.rate, Path(run) / "sound.png")
    return result


def _train(
    net: SoundModel,
    taught: Waves,
    checked: Waves,
    schedule: Schedule,
    options: Mapping[str, Any],
    folder: RunFolder,
    again: str,
    say: Callable[[str], None],
    floors: Mapping[str, float] | None,
) -> Fitted:
    """The best weights on the recordings to check on; metrics.csv beside them. With ``floors``, curve.png."""
    seed, rows, length = options["seed"], options["batch_size"], options["length"]

    def loss_of(step: int) -> Tensor:
        inputs, targets = crops(taught, rows, length, net.silence, (seed, step))
        return net.loss(net(inputs), targets)

    def report(done: Fitted) -> None:
        rows = [f"{step},{loss * NATS_TO_BITS:.6f},{value:.6f}" for step, loss, value in done.curve]
        write_text(folder.path / "metrics.csv", "\n".join(["step,train_bits,validation_bits", *rows]) + "\n")
        step, loss, value = done.curve[-1]
        say(f"step {step}/{schedule.steps}: {loss * NATS_TO_BITS:.3f} bits a sample in training, {value:.3f} in validation")
        if floors is not None:
            draw_curve(done.curve, floors, folder.path / "curve.png")

    validate = functools.partial(bits_per_sample, net, checked)
    return fit(net, loss_of, validate, schedule, folder=folder, quiet=options["quiet"], resume_with=again, report=report)


def _hear(
    net: SoundModel, run: Path, samples: int, seconds: float, temperature: float, seed: int
) -> tuple[dict[str, tuple[float, Tensor]], float]:
    """Generated files: bits a sample under the model, and the wave; and samples generated a second."""
    if not samples:
        return {}, 0.0
    made = generate_sound(net, max(1, round(seconds * net.rate)), rows=samples, temperature=temperature, seed=seed)
    names = [f"samples/sample-{i}.wav" for i in range(samples)]
    waves = Waves.join([row.numpy() for row in made.levels], names, net.rate)
    bits = nats_of(net, waves) * NATS_TO_BITS / waves.lengths
    found = {name: (float(b), net.decode(row)) for name, b, row in zip(names, bits, made.levels, strict=True)}
    for name, (_, wave) in found.items():
        write_wav(run / name, wave, net.rate)
    return found, made.levels.numel() / made.seconds


def _size(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())
