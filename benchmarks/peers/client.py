"""The benchmark's side of a participant: start a process, ask it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]


class Absent(Exception):
    """A participant that cannot take part; the text says why, and goes into its row."""


class Participant:
    """A process that speaks :mod:`benchmarks.peers.serve`. ``started`` is when it was launched."""

    def __init__(
        self, module: str, *arguments: str | int | Path, python: str = sys.executable, threads: int = 2, patience: float = 600
    ) -> None:
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (as long as the process)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self.patience = patience
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [python, "-m", f"benchmarks.peers.{module}", *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        try:
            self._answer("start")
        except BaseException:
            self.close()
            raise

    def ask(self, call: str, **arguments: Any) -> Any:
        """The participant's answer; raises Absent with its error."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"call": call, **arguments}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Absent(f"{call}: {self._last_words()}") from None
        return self._answer(call)

    def _answer(self, call: str) -> Any:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], self.patience)[0]:
            self.close()
            raise Absent(f"{call}: no answer within {self.patience:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise Absent(f"{call}: {self._last_words()}")
        message = json.loads(line)
        if "error" in message:
            raise Absent(f"{call}: {message['error']}")
        return message["value"]

    def _last_words(self) -> str:
        code = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return f"the process ended with {code}" + (f": {lines[-1]}" if lines else "")

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.errors.close()

    def __enter__(self) -> Participant:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
