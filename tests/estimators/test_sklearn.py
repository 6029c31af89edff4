"""scikit-learn's own checks of estimators, and what it does with them: as far as sequences allow."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from statescan.estimators import SequenceClassifier, SequenceRegressor

pytest.importorskip("sklearn", minversion="1.6")

_LENGTHS = "n_features_in_ counts channels: a sequence may have any length, also after the fit"
CANNOT = {
    "check_n_features_in": _LENGTHS,
    "check_n_features_in_after_fitting": _LENGTHS,
    "check_classifiers_train": f"{_LENGTHS}; what the check asks besides is asked below",
    "check_regressors_train": f"{_LENGTHS}; what the check asks besides is asked below",
    "check_supervised_y_2d": "labels (n, 1) are refused, not flattened under a warning: a second axis is that of positions",
    "check_methods_sample_order_invariance": "float32: the last bit depends on which rows a matrix product takes together",
    "check_methods_subset_invariance": "the same, at 1e-7, on some processors; asked below at 1e-5",
}


def _small(kind: Any, steps: int) -> Any:
    return kind("S4D", d_model=8, layers=1, stride=10, steps=steps, lr=5e-2, dropout=0.0, val_fraction=0.0)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [(SequenceRegressor, 1), pytest.param(SequenceRegressor, 12, marks=pytest.mark.full),
     pytest.param(SequenceClassifier, 12, marks=pytest.mark.full)],
)  # fmt: skip
def test_the_checks(kind: Any, steps: int) -> None:
    from sklearn.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(_small(kind, steps), on_fail=None, expected_failed_checks=CANNOT)
    failed = {r["check_name"]: str(r["exception"]) for r in results if r["status"] == "failed"}
    assert failed == {}
    assert sum(r["status"] == "passed" for r in results) >= 44


def test_a_row_has_the_same_answer_alone() -> None:
    X, y = np.random.default_rng(0).normal(size=(20, 10)), np.arange(20) % 3
    fitted = _small(SequenceRegressor, 3).fit(X, y.astype(float))
    np.testing.assert_allclose(np.concatenate([fitted.predict(X[i : i + 1]) for i in range(20)]), fitted.predict(X), rtol=1e-5, atol=1e-6)
    shares = _small(SequenceClassifier, 3).fit(X, y)
    alone = np.concatenate([shares.predict_proba(X[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(alone, shares.predict_proba(X), rtol=1e-5, atol=1e-6)


def test_it_clones_searches_and_sits_in_a_pipeline() -> None:
    from sklearn.base import clone, is_classifier, is_regressor
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 10))
    y = X @ rng.standard_normal(10)
    model = _small(SequenceRegressor, 40)
    assert clone(model).get_params() == model.get_params()
    assert is_regressor(model)
    assert is_classifier(SequenceClassifier())
    search = GridSearchCV(make_pipeline(StandardScaler(), model), {"sequenceregressor__lr": [1e-6, 5e-2]}, cv=2).fit(X, y)
    assert search.best_params_ == {"sequenceregressor__lr": 5e-2}
    assert search.best_estimator_.score(X, y) > 0.5
    labels = np.where(y > 0, "up", "down")
    classifier = _small(SequenceClassifier, 40).fit(X, labels)
    assert classifier.score(X, labels) > 0.83
    for bad in (labels[:-1], None):
        with pytest.raises(ValueError, match="target"):
            _small(SequenceClassifier, 1).fit(X, bad)
