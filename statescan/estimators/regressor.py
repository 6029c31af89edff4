"""Numbers from sequences with scikit-learn's manners: one answer a sequence or one a position; and as they come in, a sample at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from statescan import heads
from statescan.estimators.supervised import SequenceEstimator


class SequenceRegressor(SequenceEstimator):
    __doc__ = f"""{SequenceEstimator.__doc__}
    Targets are a number or a row of numbers each; NaN is one that is not known, and does not count.
    """

    _kind = "regressor"
    _head = heads.SequenceRegressor

    def _learn_targets(self, y: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
        given = np.concatenate(y)
        if given.dtype.kind == "c":
            raise ValueError("Complex data not supported: targets are real numbers")
        try:
            values = given.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"targets must be numbers: {error}; SequenceClassifier learns names") from error
        if values.ndim > 2:
            raise ValueError(f"a target is a number or a row of numbers; got targets of shape {values.shape[1:]}")
        if np.isinf(values).any():
            raise ValueError("a target is infinite (inf); NaN is what says that it is not known")
        self.single_ = values.ndim == 1
        values = values.reshape(len(values), -1)
        if np.isnan(values).all(0).any():
            raise ValueError(f"target {int(np.isnan(values).all(0).argmax())} is NaN throughout: nothing can be learned from it")
        spread = np.nanstd(values, 0)
        self.target_mean_, self.target_spread_ = np.nanmean(values, 0), np.where(spread > 0, spread, 1.0)
        scaled = ((values - self.target_mean_) / self.target_spread_).astype(np.float32)
        return np.split(scaled, np.cumsum([len(row) for row in y])[:-1]), np.nan

    def _outputs(self) -> int:
        return len(self.target_mean_)

    def _answer(self, output: np.ndarray) -> np.ndarray:
        return output * self.target_spread_ + self.target_mean_

    def _described(self) -> dict[str, Any]:
        return {"target_mean": self.target_mean_.tolist(), "target_spread": self.target_spread_.tolist(), "single": self.single_}

    def _recall(self, saved: dict[str, Any]) -> None:
        self.target_mean_, self.target_spread_ = np.array(saved["target_mean"]), np.array(saved["target_spread"])
        self.single_ = saved["single"]

    def predict(self, X: Any) -> Any:
        """(n,) or (n, targets); with ``per_step`` (positions,) or (positions, targets) of each sequence."""
        found = self._answers(X)
        if not self.single_:
            return found
        return [row[..., 0] for row in found] if isinstance(found, list) else found[..., 0]

    def score(self, X: Any, y: Any) -> float:
        """R2: :func:`r2` of the predictions."""
        return r2(self._all_targets(y), self._all_targets(self.predict(X)))


def r2(right: np.ndarray, guess: np.ndarray) -> float:
    """1 - squared error / squared distance from the mean, over the targets that are known; the mean over columns.

    A constant column counts 1 if it is met exactly, and 0 otherwise.
    """
    right, guess = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (right, guess))
    error = np.nansum((right - guess) ** 2, 0)
    around = np.nansum((right - np.nansum(right, 0) / (~np.isnan(right)).sum(0).clip(1)) ** 2, 0)
    known = ~np.isnan(right).all(0)
    return float(np.mean(np.where(around > 0, 1 - error / np.where(around > 0, around, 1), error == 0)[known]))
