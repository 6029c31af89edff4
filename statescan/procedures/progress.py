"""A run as one watches it: a bar on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm


class Progress:
    """Counts steps; shows bits per byte, tokens per second and the time left, on standard error."""

    def __init__(self, steps: int, start: int, tokens_per_step: int, every: int, *, quiet: bool = False) -> None:
        self.steps, self.tokens_per_step, self.every, self.quiet = steps, tokens_per_step, every, quiet
        self.bar = None
        if not quiet and sys.stderr.isatty():
            self.bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, smoothing=0.05)
        self._mark = (time.perf_counter(), start)
        self.rate = 0.0
        """Tokens per second since the last report."""

    def update(self, step: int, bits_per_byte: float) -> bool:
        """After a step; true when it is time to log (every so many steps, and at the end)."""
        due = step % self.every == 0 or step == self.steps
        now = time.perf_counter()
        if due or step - self._mark[1] == 1:
            self.rate = (step - self._mark[1]) * self.tokens_per_step / max(now - self._mark[0], 1e-9)
        if self.bar is not None:
            self.bar.update()
            self.bar.set_postfix_str(f"{bits_per_byte:.3f} bits/byte, {self.rate:,.0f} tok/s", refresh=False)
        if due:
            if self.bar is None and not self.quiet:
                left = (self.steps - step) * self.tokens_per_step / self.rate
                self.say(f"step {step}/{self.steps}  {bits_per_byte:.3f} bits/byte  {self.rate:,.0f} tok/s  {_clock(left)} left")
            self._mark = (now, step)
        return due

    def pause(self) -> None:
        """Time from here to now was not spent on steps: begin the rate anew."""
        self._mark = (time.perf_counter(), self._mark[1])

    def say(self, line: str) -> None:
        """A line that does not tear the bar."""
        if not self.quiet:
            tqdm.write(line, file=sys.stderr)
            sys.stderr.flush()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
