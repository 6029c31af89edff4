"""Generated tasks that tell sequence mixers apart: each a registered class whose fields say how hard it is, deterministic by seed."""

from statescan.data.tasks.base import UNASKED, Examples, Task
from statescan.data.tasks.copying import Copy, Delay, SelectiveCopying
from statescan.data.tasks.language import Automaton, InContextLanguage, random_automaton
from statescan.data.tasks.recall import MQAR, InductionHeads, JointRecall, Needle
from statescan.data.tasks.tracking import Parity, Permutation

__all__ = [
    "MQAR",
    "TASKS",
    "UNASKED",
    "Automaton",
    "Copy",
    "Delay",
    "Examples",
    "InContextLanguage",
    "InductionHeads",
    "JointRecall",
    "Needle",
    "Parity",
    "Permutation",
    "SelectiveCopying",
    "Task",
    "random_automaton",
]

TASKS: tuple[type[Task], ...] = (
    MQAR, JointRecall, SelectiveCopying, InductionHeads, InContextLanguage, Parity, Permutation, Needle, Copy, Delay,
)  # fmt: skip
"""Every task there is."""
