"""Text from tokens as they come: whole characters only, and nothing that may yet turn out to be a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_PARTIAL = "\ufffd"
"""What a decoder writes for bytes that are not (yet) a character. A tokenizer that falls back to bytes writes it for every byte of a run
with an unfinished end, finished characters before it included: so text that ends in it is not to be trusted at all."""
_PATIENCE = 16
"""Tokens after which bytes that make no character are let through nevertheless, but for the last sign: it may be an unfinished one."""


class Tokenizer(Protocol):
    """What generation needs of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class TextStream:
    """Tokens in, text out. The joined pieces equal ``decode`` of all tokens, cut before the first stop string.

    Two things are held back: an unfinished character, and an ending that is the beginning of a stop string. The tokens decoded
    again at each step are only those since the last complete piece and the piece before it (a decoder may treat the first token of
    a text differently), so the cost of a token does not grow.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop_strings = tuple(stop_strings)
        self.stopped = False
        self._ids: list[int] = []
        self._known = 0  # tokens of the window whose text has been taken
        self._taken = 0  # further characters taken, of tokens after those
        self._held = ""

    def push(self, token: int) -> str:
        """The text that is certain after one more token. Sets ``stopped`` when a stop string is complete."""
        self._ids.append(token)
        known = self.tokenizer.decode(self._ids[: self._known]) if self._known else ""
        text = self.tokenizer.decode(self._ids)
        fresh = text[len(known) + self._taken :]
        if text.endswith(_PARTIAL):
            fresh = fresh[:-1] if len(self._ids) - self._known >= _PATIENCE else ""
            self._taken += len(fresh)
        else:
            self._ids, self._known, self._taken = self._ids[self._known :], len(self._ids) - self._known, 0
        return self._release(fresh)

    def finish(self) -> str:
        """What was held back, once no token follows."""
        if self.stopped:
            return ""
        known = self.tokenizer.decode(self._ids[: self._known]) if self._known else ""
        text = self._release((self.tokenizer.decode(self._ids) if self._ids else "")[len(known) + self._taken :]) + self._held
        self._held = ""
        return text

    def _release(self, fresh: str) -> str:
        text = self._held + fresh
        found = [place for place in (text.find(stop) for stop in self.stop_strings) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((n for stop in self.stop_strings for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]
