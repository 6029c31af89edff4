"""Which suit had the card three steps ago: an agent with memory answers, one without cannot. Results: docs/control.md.

An answer changes nothing about what follows, so the discount is zero. Returns lie between -1 and 1; blind answers give -1/2.
"""

from __future__ import annotations

from statescan.estimators.control import Controlled, control
from statescan.spec import Spec


def s5(run: str = "runs/repeat-previous", steps: int = 500_000, seeds: int = 3, seed: int = 0) -> Controlled:
    """Resettable S5, beside the same network without memory, three seeds each."""
    return control(
        "statescan/RepeatPrevious-v0", run, mixer=Spec("S5", d_state=64), d_model=32, d_ff=64, d_hidden=32, envs=256, rollout=32,
        steps=steps, lr=4e-3, gamma=0.0, seeds=seeds, seed=seed,
    )  # fmt: skip
