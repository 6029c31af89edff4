"""Two tasks of the long-range arena, small: nested operations, with and without pretraining, and paths in pictures.

Results: docs/tasks.md.
"""

from __future__ import annotations

from statescan.procedures.compare import Comparison, compare
from statescan.spec import Spec


def list_ops(run: str = "runs/list-ops", seeds: int = 3, seed: int = 0) -> Comparison:
    """S4D in both directions, from scratch and after masked denoising of the same rows (https://arxiv.org/abs/2310.02980)."""
    return compare(
        Spec("ListOps"), [Spec("TwoSided", mixer=Spec("S4D", d_state=16, dt_min=1e-4))], run, d_model=64, layers=4, parameters=102_154,
        batch_size=50, steps=1_600, lr=1e-2, weight_decay=0.05, train_rows=20_000, pretrain_steps=600, pretrain="masked", test_rows=1_000,
        seeds=seeds, first_seed=seed,
    )  # fmt: skip


def list_ops_pretrained(run: str = "runs/list-ops-pretrained", seeds: int = 3, seed: int = 0) -> Comparison:
    """The same in half of the steps at a third of the rate, after more denoising: there it helps in every seed."""
    return compare(
        Spec("ListOps"), [Spec("TwoSided", mixer=Spec("S4D", d_state=16, dt_min=1e-4))], run, d_model=64, layers=4, parameters=102_154,
        batch_size=50, steps=800, lr=3e-3, weight_decay=0.05, train_rows=20_000, pretrain_steps=1_000, pretrain="masked", test_rows=2_000,
        eval_every=100, seeds=seeds, first_seed=seed,
    )  # fmt: skip


def pathfinder(run: str = "runs/pathfinder", seeds: int = 3, seed: int = 0) -> Comparison:
    """S4D in both directions on 16 by 16 pixels."""
    return compare(
        Spec("Pathfinder"), [Spec("TwoSided", mixer=Spec("S4D", d_state=32))], run, d_model=32, layers=4, parameters=50_400, steps=1_600,
        lr=6e-3, batch_size=64, weight_decay=0.05, train_rows=20_000, test_rows=1_000, eval_every=100, stop_at=0.95,
        seeds=seeds, first_seed=seed,
    )  # fmt: skip
