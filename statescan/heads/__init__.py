"""Features to a task's output and its loss."""

from statescan.heads.classify import Classifier
from statescan.heads.language import LanguageModel

__all__ = ["Classifier", "LanguageModel"]
