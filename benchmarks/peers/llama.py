"""llama.cpp: an environment of its own, built once and kept; and our weights under the names that a GGUF file has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.client import Absent, Participant
from statescan.mixers import Mamba, Mamba2

PACKAGES = ("llama-cpp-python==0.3.36", "gguf==0.19.0")


def environment(python: str | None, build: bool, say: Callable[[str], None] = lambda text: None) -> str:
    """The interpreter that has llama_cpp and gguf: the given one, else the kept environment, which is built first (about five minutes)."""
    if python is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "statescan" / "peers"
        folder = cache / "-".join(package.replace("==", "-") for package in PACKAGES)
        python = str(folder / "bin" / "python")
        if not (folder / "done").exists():
            if not build:
                raise Absent("its environment has not been built: `make bench` does that, once")
            say(f"building {PACKAGES[0]} in {folder}, once: about five minutes")
            cache.mkdir(parents=True, exist_ok=True)
            with open(cache / "build.log", "w", encoding="utf-8") as log:
                for command in (
                    [sys.executable, "-m", "venv", "--clear", str(folder)],
                    [python, "-m", "pip", "install", "--no-binary=llama-cpp-python", *PACKAGES],
                ):
                    try:
                        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
                    except (OSError, subprocess.CalledProcessError) as error:
                        raise Absent(f"its environment cannot be built ({error}); the log is {cache / 'build.log'}") from None
            (folder / "done").touch()
    found = subprocess.run([python, "-c", "import gguf, llama_cpp"], capture_output=True, text=True, check=False)
    if found.returncode:
        raise Absent(f"{python} does not import it: {found.stderr.strip().splitlines()[-1]}")
    return python


def export(model: Any, folder: Path) -> None:
    """weights.npz under GGUF names, and sizes.json."""
    mixer = model.backbone.layers[0].mixer
    assert isinstance(mixer, Mamba | Mamba2)
    second = isinstance(mixer, Mamba2)
    sizes = {
        "architecture": "mamba2" if second else "mamba",
        "width": model.d_model,
        "depth": len(model.backbone.layers),
        "vocabulary": model.vocab_size,
        "conv": mixer.d_conv,
        "inner": mixer.d_ssm if isinstance(mixer, Mamba2) else mixer.d_inner,
        "state": mixer.d_state,
        "rank": mixer.nheads if isinstance(mixer, Mamba2) else mixer.dt_rank,
        "groups": mixer.ngroups if isinstance(mixer, Mamba2) else 1,
        "eps": model.backbone.norm_f.eps,
    }
    arrays = {"token_embd.weight": model.backbone.embedding.weight, "output_norm.weight": model.backbone.norm_f.weight}
    for i, layer in enumerate(model.backbone.layers):
        mine = _second(layer.mixer) if second else _first(layer.mixer)
        arrays |= {f"blk.{i}.attn_norm.weight": layer.norm.weight} | {f"blk.{i}.{name}": value for name, value in mine.items()}
    np.savez(folder / "weights.npz", **{name: tensor.detach().float().numpy() for name, tensor in arrays.items()})
    (folder / "sizes.json").write_text(json.dumps(sizes), encoding="utf-8")


def _shared(mixer: Any) -> dict[str, Any]:
    return {
        "ssm_in.weight": mixer.in_proj.weight,
        "ssm_conv1d.weight": mixer.conv1d.weight.flatten(1),
        "ssm_conv1d.bias": mixer.conv1d.bias,
        "ssm_out.weight": mixer.out_proj.weight,
    }


def _first(mixer: Any) -> dict[str, Any]:
    return _shared(mixer) | {
        "ssm_x.weight": mixer.x_proj.weight,
        "ssm_dt.weight": mixer.dt_proj.weight,
        "ssm_dt.bias": mixer.dt_proj.bias,
        "ssm_a": -mixer.A_log.exp(),
        "ssm_d": mixer.D,
    }


def _second(mixer: Any) -> dict[str, Any]:
    return _shared(mixer) | {
        "ssm_dt.bias": mixer.dt_bias,
        "ssm_a": -mixer.A_log.exp().unsqueeze(1),
        "ssm_d": mixer.D.unsqueeze(1),
        "ssm_norm.weight": mixer.norm.weight.view(mixer.ngroups, -1),
    }


def start(python: str, folder: Path, precision: str, threads: int) -> Participant:
    """A server that has loaded the weights which :func:`export` left in the folder.

    It turns quantised weights into layouts of its own, but on processors with AMX: that layout crashes the process at the first prompt.
    """
    flags = Path("/proc/cpuinfo")
    amx = flags.exists() and "amx_int8" in flags.read_text(encoding="utf-8")
    files = folder / "weights.npz", folder / "sizes.json"
    return Participant("llama_server", *files, precision, threads, int(not amx), python=python, threads=threads)
