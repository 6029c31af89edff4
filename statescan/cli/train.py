"""``statescan train``: train a model; ``statescan train --resume RUN`` goes on with one."""

from __future__ import annotations

from pathlib import Path

from statescan.procedures.train import train as run

__all__ = ["rewrite", "run"]


def rewrite(argv: list[str]) -> list[str]:
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
