"""A run folder: config.yaml, metrics.csv, curve.png, checkpoints, and at last the model.

::

    run/
      config.yaml        every option of the run, resolved: `statescan train --resume run` continues it
      environment.json   versions and the machine
      data.json          a digest of the data, where the whole of them is read at the beginning
      metrics.csv        one row a log or evaluation
      curve.png          bits per byte against tokens
      checkpoints/       step-00001000/, ...: model folders with all that an exact continuation needs
      config.json, model.safetensors   the trained model, once the run has ended: `statescan generate run`
"""

from __future__ import annotations

import csv
import hashlib
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from statescan.files import read_json, write_json, write_text

METRICS = ("step", "seconds", "tokens", "lr", "train_bpb", "grad_norm", "tokens_per_second", "held_out_bpb", "router_balance", "router_z")


class RunFolder:
    """The files of one run."""

    def __init__(self, path: str | os.PathLike[str], verb: str = "train") -> None:
        self.path, self.verb = Path(path), verb
        self.checkpoints = self.path / "checkpoints"
        self._plots_missing_said = False

    def open(self, config: Mapping[str, Any], *, resume: bool, may_change: Sequence[str], data: str = "") -> None:
        """Begin a run here, or continue one with the options, and the :func:`digest` of the data, it was begun with."""
        file = self.path / "config.yaml"
        if file.is_file() and not resume:
            raise ValueError(
                f"{self.path} holds a run already: continue it with `statescan {self.verb} --resume {self.path}`, or choose another folder"
            )
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: the run needs a folder")
        if file.is_file():
            before = yaml.safe_load(file.read_text(encoding="utf-8"))
            for key in config.keys() | before.keys():
                if key not in may_change and config.get(key) != before.get(key):
                    raise ValueError(
                        f"{self.path} was begun with {key}={before.get(key)!r}, not {config.get(key)!r}: a run is continued with its own "
                        f"{file}; for other options begin a new run"
                    )
            known = read_json(self.path / "data.json")["digest"] if (self.path / "data.json").is_file() else data
            if known != data:
                raise ValueError(f"the data have changed since {self.path} was begun: put them back as they were, or begin a new run")
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        if data:
            write_json(self.path / "data.json", {"digest": data})
        for leftover in self.checkpoints.glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)
        write_text(file, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        write_json(self.path / "environment.json", _environment())

    # -- checkpoints ------------------------------------------------------------------------------------------------------------

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        found = [p for p in self.checkpoints.glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
        return max(found, key=lambda p: int(p.name[5:]), default=None)

    def write_checkpoint(self, step: int, fill: Callable[[Path], None], keep: int) -> Path:
        """``fill`` a folder under a temporary name, then give it its own; only then remove all but the newest ``keep``.

        Whatever goes wrong before that leaves the checkpoints there are as they were.
        """
        final = self.checkpoints / f"step-{step:08d}"
        part = self.checkpoints / f".{final.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir(parents=True)
            fill(part)
            self._discard(final)
            os.replace(part, final)
            _flush(self.checkpoints)
        except Exception as error:
            shutil.rmtree(part, ignore_errors=True)
            if not _is_io(error):
                raise
            previous = self.latest()
            kept = f"the previous one, {previous}, is intact" if previous else "there is no earlier one"
            raise OSError(f"the checkpoint of step {step} could not be written to {self.checkpoints} ({error}); {kept}") from error
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        for old in sorted(self.checkpoints.glob("step-*"), key=lambda p: int(p.name[5:]))[:-keep]:
            self._discard(old)
        return final

    def _discard(self, folder: Path) -> None:
        """Remove a checkpoint so that none is ever seen half removed."""
        if folder.exists():
            rubbish = folder.with_name(f".{folder.name}.old")
            os.replace(folder, rubbish)
            shutil.rmtree(rubbish, ignore_errors=True)

    # -- metrics ----------------------------------------------------------------------------------------------------------------

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.csv"

    def read_metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv; empty cells are left out."""
        if not self.metrics_file.is_file():
            return []
        with open(self.metrics_file, newline="", encoding="utf-8") as file:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]

    def begin_metrics(self, step: int) -> None:
        """Keep the rows up to a step: what a killed run logged after its last checkpoint is done again."""
        rows = [row for row in self.read_metrics() if step and row["step"] <= step]
        lines = [",".join(METRICS), *(",".join(_cell(row.get(key)) for key in METRICS) for row in rows)]
        write_text(self.metrics_file, "\n".join(lines) + "\n")

    def log(self, row: Mapping[str, float | None]) -> None:
        """Append a row."""
        with open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(",".join(_cell(row.get(key)) for key in METRICS) + "\n")

    def draw(self, say: Callable[[str], None]) -> None:
        """curve.png, if matplotlib is there; ``say`` once if it is not."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            if not self._plots_missing_said:
                say("curve.png is not drawn: pip install 'statescan[plots]'")
                self._plots_missing_said = True
            return
        rows = self.read_metrics()
        figure = Figure(figsize=(6.4, 4), layout="constrained")
        axes = figure.add_subplot()
        for key, label in (("train_bpb", "training"), ("held_out_bpb", "held out")):
            points = [(row["tokens"], row[key]) for row in rows if key in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker="o" if key == "held_out_bpb" else None, markersize=3)
        axes.set(xlabel="tokens", ylabel="bits per byte", title=self.path.resolve().name)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        figure.savefig(self.path / ".curve.png", format="png", dpi=120)
        os.replace(self.path / ".curve.png", self.path / "curve.png")


def digest(arrays: Iterable[Any]) -> str:
    """A short name for arrays of numbers and texts, their shapes and their order."""
    found = hashlib.blake2b(digest_size=16)
    for array in map(np.asarray, arrays):
        found.update(f"{array.shape} {array.dtype.str}".encode() + array.tobytes())
    return found.hexdigest()


def read_training_state(checkpoint: Path) -> dict[str, Any]:
    """training.json of a checkpoint."""
    file = checkpoint / "training.json"
    if not file.is_file():
        raise ValueError(f"{checkpoint} has no training.json: it is a model folder, not a checkpoint that a run can continue from")
    return read_json(file)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"


def _is_io(error: Exception) -> bool:
    # safetensors reports a full disk in its own class
    return isinstance(error, OSError) or (type(error).__name__ == "SafetensorError" and "os error" in str(error).lower())


def _flush(folder: Path) -> None:
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _environment() -> dict[str, Any]:
    import statescan

    return {
        "statescan": statescan.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv,
    }
