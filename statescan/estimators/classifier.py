"""Classification of sequences with scikit-learn's manners: fit, predict, predict_proba, score; and as they come in, a sample at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from statescan import heads
from statescan.estimators.supervised import SequenceEstimator
from statescan.heads.sequence import MISSING


class SequenceClassifier(SequenceEstimator):
    __doc__ = f"""{SequenceEstimator.__doc__}
    ``classes_`` too. With ``per_step`` every position is classified; None, NaN or an empty text is a position without a label.
    """

    _kind = "classifier"
    _head = heads.SequenceClassifier

    def _learn_targets(self, y: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
        labels = np.concatenate(y)
        if labels.ndim != 1:
            raise ValueError(f"there must be one label a sequence, or a position: got labels of shape {labels.shape}")
        if labels.dtype.kind == "c":
            raise ValueError("Complex data not supported: labels are names or whole numbers")
        known = _known(labels)
        if not known.all() and not self.per_step:
            raise ValueError(f"sequence {int((~known).argmax())} has no label (its label is NaN, None or empty): leave it out")
        if labels.dtype.kind == "f" and (labels[known] != np.round(labels[known])).any():
            raise ValueError("Unknown label type: continuous. Labels are names or whole numbers; SequenceRegressor learns numbers")
        self.classes_ = np.unique(labels[known])
        if len(self.classes_) < 2:
            only = f"all labels are {str(self.classes_[0])!r}" if len(self.classes_) else "there is no label"
            raise ValueError(f"{only}: a classifier needs at least two classes (it got {len(self.classes_)} class)")
        numbers = np.full(len(labels), MISSING)
        numbers[known] = np.searchsorted(self.classes_, labels[known])
        return np.split(numbers, np.cumsum([len(row) for row in y])[:-1]), MISSING

    def _outputs(self) -> int:
        return len(self.classes_)

    def _answer(self, output: np.ndarray) -> np.ndarray:
        return torch.from_numpy(output).softmax(-1).numpy()

    def _described(self) -> dict[str, Any]:
        return {"classes": self.classes_.tolist()}

    def _recall(self, saved: dict[str, Any]) -> None:
        self.classes_ = np.array(saved["classes"])

    def predict_proba(self, X: Any) -> Any:
        """(n, classes), in the order of ``classes_``; with ``per_step`` (positions, classes) of each sequence."""
        return self._answers(X)

    def predict(self, X: Any) -> Any:
        """The likeliest class of each sequence, or of each of its positions."""
        found = self.predict_proba(X)
        if isinstance(found, list):
            return [self.classes_[row.argmax(-1)] for row in found]
        return self.classes_[found.argmax(-1)]

    def score(self, X: Any, y: Any) -> float:
        """Share of right answers, among those that have a label."""
        guess, right = self._all_targets(self.predict(X)), self._all_targets(y)
        known = _known(right)
        return float((guess[known] == right[known]).mean())


def _known(labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind == "f":
        return ~np.isnan(labels)
    if labels.dtype.kind in "OUS":
        return np.array([not (value is None or value == "" or value != value) for value in labels], bool)
    return np.ones(len(labels), bool)
