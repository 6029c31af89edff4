"""The process side of a participant: requests are lines of JSON on standard input, answers lines of JSON on standard output.

``{"call": "prefill", "length": 512}`` calls ``participant.prefill(length=512)``; the answer is ``{"value": ...}`` or ``{"error": "..."}``.
Only the standard library is imported: the llama.cpp peer lives in an environment without torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Callable
from typing import Any


def peak_memory(reset: bool = False) -> float | None:
    """The largest resident size of this process since the last reset, in MiB; None where the kernel does not say."""
    try:
        if reset:
            with contextlib.suppress(AttributeError):  # glibc keeps what was freed; others need not be told
                ctypes.CDLL(None).malloc_trim(0)
            if "statescan.ops.pages" in sys.modules:  # so does this library
                sys.modules["statescan.ops.pages"].release()
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")
        with open("/proc/self/status", encoding="utf-8") as file:  # getrusage would report the parent's peak: it survives exec
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
    except OSError:
        return None


def serve(make: Callable[[], Any]) -> None:
    """Build the participant, then answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not mix with the answers

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        participant = make()
    except Exception as error:  # whatever it is, the row has to say it
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"value": "ready"})
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("call")
        try:
            answer({"value": peak_memory(**request) if name == "peak" else getattr(participant, name)(**request)})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})
