"""The laws of the contract, to be run on any layer: ``statescan.testing.check_mixer(MyMixer, d_model=32)``."""

from statescan.testing.compare import LawError, Outcome
from statescan.testing.report import BrokenLaws, Finding, Report
from statescan.testing.run import LAWS, check_mixer, check_model
from statescan.testing.subject import Mode, Subject

__all__ = ["LAWS", "BrokenLaws", "Finding", "LawError", "Mode", "Outcome", "Report", "Subject", "check_mixer", "check_model"]
