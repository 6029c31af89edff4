"""The small comparisons of docs/tasks.md and docs/tasks_lti.md: who solves a task, and who does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from statescan.data.tasks import MQAR, Autoregression, DelaySignal, FourierNoise, InductionHeads, RepeatFirst
from statescan.procedures.compare import Comparison, compare
from statescan.spec import Spec

pytestmark = pytest.mark.full


def run(task: Spec[Any], mixers: list[Any], folder: Path, **options: Any) -> Comparison:
    given = {"layers": 1, "batch_size": 32, "test_rows": 64, "seeds": 1, "eval_every": 1000, "warmup": 20, "weight_decay": 0.0}
    found = compare(task, mixers, str(folder), **(given | options), stop_at=2, quiet=True)
    print(found)
    return found


def test_an_autoregression_goes_on_by_a_companion_system(tmp_path: Path) -> None:
    mixers = [{"name": "Companion", "d_state": 4}, {"name": "S4D", "d_state": 4}]
    found = run(Spec(Autoregression), mixers, tmp_path, d_model=16, steps=300, lr=1e-2)
    companion, s4d = (score.accuracy["64 values ahead"] for score in found.scores)
    assert companion > s4d + 0.2


def test_episodes_need_resets(tmp_path: Path) -> None:
    told, untold = (
        run(Spec(RepeatFirst, most=12, resets=resets), [{"name": "S5", "d_state": 32}], tmp_path, d_model=32, steps=400, lr=1e-2)
        for resets in (True, False)
    )
    assert told.scores[0].accuracy["length 64"] > untold.scores[0].accuracy["length 64"] + 0.2


H3_AND_S4D = [{"name": "H3", "num_heads": 8, "d_state": 16, "d_shift": 4}, {"name": "S4D", "d_state": 16}]


def test_induction_needs_products(tmp_path: Path) -> None:
    options = {"d_model": 32, "layers": 2, "parameters": 20_000, "batch_size": 128, "steps": 300, "lr": 1e-2, "test_rows": 256}
    found = run(Spec(InductionHeads, length=30, vocab_size=20, test_lengths=()), H3_AND_S4D, tmp_path, **options)
    h3, s4d = (score.accuracy["length 30"] for score in found.scores)
    assert h3 > 0.9
    assert s4d < 0.3


def test_recall_needs_products(tmp_path: Path) -> None:
    options = {"d_model": 32, "parameters": 16_000, "batch_size": 128, "steps": 400, "lr": 1e-2, "warmup": 100, "test_rows": 256}
    found = run(Spec(MQAR, vocab_size=20, length=24, pairs=4, noise=False), H3_AND_S4D, tmp_path, **options)
    h3, s4d = (score.accuracy["length 24"] for score in found.scores)
    assert h3 > 0.8
    assert s4d < 0.4


def test_what_a_system_starts_from_decides_how_long_it_delays(tmp_path: Path) -> None:
    mixers = [{"name": "S4"}, {"name": "S4", "init": "fourier"}, {"name": "S4D", "init": "real"}]
    found = run(Spec(DelaySignal, length=1024, delay=512), mixers, tmp_path, d_model=8, batch_size=8, steps=300, lr=1e-2)
    legs, fourier, real = (score.accuracy["length 1024"] for score in found.scores)
    assert fourier > legs + 0.1
    assert legs > real + 0.02


def test_the_perturbed_system_does_not_hear_oscillations(tmp_path: Path) -> None:
    mixers = [{"name": "S4D", "init": init, "dt_min": 0.002, "dt_max": 0.002} for init in ("legs", "ptd")]
    found = run(Spec(FourierNoise, length=128), mixers, tmp_path, d_model=32, batch_size=16, steps=200, lr=1e-2)
    legs, ptd = (score.accuracy["as trained"] - score.accuracy["with oscillations"] for score in found.scores)
    assert legs > ptd + 0.005
