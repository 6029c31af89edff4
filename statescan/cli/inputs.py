"""What verbs are given: a model by name or folder, a prompt, a run to continue."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from statescan.registry import ModelEntry, models, nearest


def load_model(where: str, device: str | None = None) -> Any:
    """The trained model of a run folder, a model folder or a hub repository."""
    from statescan.interop import from_pretrained

    if where in models and not Path(where).exists():
        raise ValueError(f"{where} is the name of an untrained model: give a run folder, a model folder or a hub repository (owner/name)")
    if Path(where, "checkpoints").is_dir() and not Path(where, "config.json").is_file():
        from statescan.procedures.runs import RunFolder

        latest = RunFolder(where).latest()
        if latest is None:
            raise ValueError(f"{where} is a run without a checkpoint yet: wait for one, or train it further")
        print(f"statescan: the run has not ended: using its checkpoint {latest.name}", file=sys.stderr)
        where = str(latest)
    if device is not None:
        check_device(device)
    return from_pretrained(where, device=device)


def check_device(device: str) -> None:
    """A ValueError if torch cannot put a tensor there."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}; try --device cpu") from error


def find(where: str, *, build: bool = True) -> tuple[ModelEntry | None, Any]:
    """(registry entry, model) of a model's name (built without memory unless ``build``), or (None, model) of a folder."""
    from statescan import create_model

    if where in models:
        return models[where], create_model(where, device=None if build else "meta")
    if Path(where).is_dir() or "/" in where:
        return None, load_model(where)
    raise ValueError(f"{where} is neither a folder nor the name of a model{nearest(where, models)}")


def read_prompt(prompt: str | None, file: str | None, *, needed: bool) -> str | None:
    """The prompt, from the option or from a file (- is standard input)."""
    if prompt is not None and file is not None:
        raise ValueError("give prompt or prompt_file, not both")
    if file is None:
        if prompt is None and needed:
            raise ValueError("generate needs --prompt TEXT, --prompt_file FILE (- for standard input) or --load_state FILE")
        return prompt
    if file == "-":
        try:
            return sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset {error.start}") from error
    from statescan.data.sources import read_text

    return read_text(file)


def resumed(argv: list[str]) -> list[str]:
    """``--resume RUN`` stands for the run's own configuration: ``RUN/config.yaml --run RUN --resume``."""
    for i, word in enumerate(argv):
        folder = word.partition("=")[2] if word.startswith("--resume=") else argv[i + 1] if word == "--resume" and argv[i + 1 :] else ""
        if folder and not folder.startswith("-") and folder.lower() not in ("true", "false") and not folder.endswith((".yaml", ".yml")):
            config = Path(folder, "config.yaml")
            if not config.is_file():
                raise ValueError(f"{folder} is not a run folder: it has no config.yaml")
            rest = argv[:i] + argv[i + (1 if "=" in word else 2) :]
            return [str(config), f"--run={folder}", "--resume=true", *rest]
    return argv
