"""A model to a finding: where paths part, what a model costs."""

from statescan.analysis.cost import Cost, cost
from statescan.analysis.parity import Parity, parity

__all__ = ["Cost", "Parity", "cost", "parity"]
