"""Decoding at the speed of memory: one native call a token.

>>> engine = ss.Engine(model)                                # doctest: +SKIP
>>> logits, state = engine.scan(prompt_ids)                  # doctest: +SKIP
>>> logits, state = engine.step(token, state)                # doctest: +SKIP
"""

from statescan.engine.engine import Engine

__all__ = ["Engine"]
