"""Generated tasks that tell sequence mixers apart: each a registered class whose fields say how hard it is, deterministic by seed."""

from statescan.data.tasks.base import UNASKED, Examples, Task
from statescan.data.tasks.copying import Copy, Delay, SelectiveCopying
from statescan.data.tasks.episodes import RepeatFirst
from statescan.data.tasks.frames import MovingDigits
from statescan.data.tasks.language import Automaton, InContextLanguage, random_automaton
from statescan.data.tasks.long_range import ListOps, Pathfinder
from statescan.data.tasks.recall import MQAR, InductionHeads, JointRecall, Needle
from statescan.data.tasks.signals import Autoregression, DelaySignal, FourierNoise
from statescan.data.tasks.tracking import Parity, Permutation

__all__ = [
    "MQAR",
    "SIGNALS",
    "TASKS",
    "UNASKED",
    "Automaton",
    "Autoregression",
    "Copy",
    "Delay",
    "DelaySignal",
    "Examples",
    "FourierNoise",
    "InContextLanguage",
    "InductionHeads",
    "JointRecall",
    "ListOps",
    "MovingDigits",
    "Needle",
    "Parity",
    "Pathfinder",
    "Permutation",
    "RepeatFirst",
    "SelectiveCopying",
    "Task",
    "random_automaton",
]

TASKS: tuple[type[Task], ...] = (
    MQAR, JointRecall, SelectiveCopying, InductionHeads, InContextLanguage, Parity, Permutation, Needle, Copy, Delay, RepeatFirst, ListOps,
    Pathfinder,
)  # fmt: skip
"""Every task on ids."""

SIGNALS: tuple[type[Task], ...] = (DelaySignal, Autoregression, FourierNoise, MovingDigits)
"""Every task on real numbers."""
