"""Data in, a fitted and evaluated model out, with the manners of each community: scikit-learn's, forecasters'."""

from statescan.estimators.classifier import SequenceClassifier
from statescan.estimators.forecaster import Forecaster
from statescan.estimators.regressor import SequenceRegressor

__all__ = ["Forecaster", "SequenceClassifier", "SequenceRegressor"]
