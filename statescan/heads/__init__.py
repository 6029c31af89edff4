"""Features to a task's output and its loss."""

from statescan.heads.classify import Classifier, ImageClassifier
from statescan.heads.language import LanguageModel

__all__ = ["Classifier", "ImageClassifier", "LanguageModel"]
