"""Triton's interpreter, made quick enough for tests.

It prepares its language anew at every call of a helper, 1.5 ms each; once a launch will do.
"""

from __future__ import annotations

from typing import Any


def hasten() -> None:
    """To be called once, in a process with TRITON_INTERPRET=1."""
    from triton.runtime import interpreter

    prepare, launch, prepared = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

    def prepare_once(fn: Any) -> Any:
        module = id(fn.__globals__)
        if module in prepared:
            return None
        prepared.add(module)
        return prepare(fn)

    def launch_afresh(self: Any, *args: Any, **kwargs: Any) -> None:
        prepared.clear()
        launch(self, *args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = prepare_once, launch_afresh
