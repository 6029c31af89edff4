"""Features to a task's output and its loss."""

from statescan.heads.classify import Classifier, ImageClassifier
from statescan.heads.forecast import ClosedLoopForecast
from statescan.heads.language import LanguageModel
from statescan.heads.masked_language import MaskedLanguageModel, corrupt
from statescan.heads.reverse_complement import ReverseComplement
from statescan.heads.sequence import SequenceClassifier, SequenceRegressor

__all__ = [
    "Classifier",
    "ClosedLoopForecast",
    "ImageClassifier",
    "LanguageModel",
    "MaskedLanguageModel",
    "ReverseComplement",
    "SequenceClassifier",
    "SequenceRegressor",
    "corrupt",
]
