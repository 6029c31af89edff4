"""What held, what was skipped and why, and what failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

TITLES = {
    1: "forward == chunks == steps",
    2: "packed and padded == apart",
    3: "causal",
    4: "gradients flow through the state",
    5: "implementations agree",
    6: "projections are called as modules",
    7: "interval 2 == two steps",
    8: "repeatable, finite, compiles, exports, saves",
}


@dataclass(frozen=True)
class Finding:
    """One comparison: its law, what was compared, and a reason if it was skipped or failed."""

    law: int
    comparison: str
    reason: str = ""

    def __str__(self) -> str:
        return f"law {self.law} ({TITLES[self.law]}): {self.comparison}{': ' + self.reason if self.reason else ''}"


@dataclass
class Report:
    """The result of :func:`statescan.testing.check_mixer`."""

    subject: str
    passed: list[Finding] = field(default_factory=list)
    skipped: list[Finding] = field(default_factory=list)
    failed: list[Finding] = field(default_factory=list)

    @contextmanager
    def comparing(self, law: int, comparison: str) -> Iterator[None]:
        """Record the block as passed, or as failed with its exception: one broken comparison does not hide the others."""
        try:
            yield
        except Exception as error:  # any exception is the finding: a law that cannot run is a law that does not hold
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            self.failed.append(Finding(law, comparison, kind + _short(str(error))))
        else:
            self.passed.append(Finding(law, comparison))

    def skip(self, law: int, comparison: str, reason: str) -> None:
        """Record what was not compared, and why."""
        self.skipped.append(Finding(law, comparison, reason))

    def merge(self, other: Report) -> None:
        """Take over the findings of another report."""
        for mine, theirs in zip((self.passed, self.skipped, self.failed), (other.passed, other.skipped, other.failed), strict=True):
            theirs = [Finding(f.law, f"[{other.subject}] {f.comparison}", f.reason) for f in theirs]
            mine.extend(theirs)

    def raise_if_failed(self) -> None:
        """A :class:`BrokenLaws` with the first failures; its ``report`` has all."""
        if self.failed:
            raise BrokenLaws(self)

    def __str__(self) -> str:
        lines = [f"{self.subject}: {len(self.passed)} passed, {len(self.skipped)} skipped, {len(self.failed)} failed"]
        lines += [f"  skipped {finding}" for finding in self.skipped]
        lines += [f"  FAILED  {finding}" for finding in self.failed]
        return "\n".join(lines)


class BrokenLaws(AssertionError):
    """Some comparisons failed; they are in ``report.failed``."""

    def __init__(self, report: Report, shown: int = 20) -> None:
        lines = [f"  {finding}" for finding in report.failed[:shown]]
        if len(report.failed) > shown:
            lines.append(f"  ... and {len(report.failed) - shown} more")
        total = len(report.failed) + len(report.passed)
        super().__init__("\n".join([f"{report.subject} breaks {len(report.failed)} comparison(s) of {total}:", *lines]))
        self.report = report


def _short(text: str, limit: int = 600) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit] + " ..."
