"""Two processes that torchrun starts end where one with the same batch does, and are resumed to the bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("peft")

import statescan as ss
from statescan.data import ByteTokenizer
from statescan.files import read_safetensors
from statescan.procedures.finetune import finetune
from statescan.procedures.runs import RunFolder
from tests.procedures.train_toys import MODEL

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = {"steps": 4, "length": 24, "lr": 2e-3, "save_every": 2, "log_every": 1, "accumulate": 2, "rank": 2}


def two(*argv: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "statescan", "finetune", *argv]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.full
def test_two_processes_are_one(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ss.save_pretrained(MODEL(), tmp_path / "base", ByteTokenizer())
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": "p" * (i % 7), "completion": f"{i} is {i}"}) + "\n" for i in range(40)))
    alone = finetune(str(tmp_path / "base"), str(data), str(tmp_path / "one"), batch_size=4, quiet=True, **OPTIONS)
    run = tmp_path / "two"
    words = [f"--{name}={value}" for name, value in OPTIONS.items()]
    two(str(tmp_path / "base"), str(data), str(run), "--batch_size=2", *words)
    rows = zip(RunFolder(tmp_path / "one").read_metrics(), RunFolder(run).read_metrics(), strict=True)
    for one, both in rows:
        for name in sorted({"train_bpb", "grad_norm", "held_out_bpb"} & one.keys()):
            assert both[name] == pytest.approx(one[name], rel=1e-4), (one["step"], name)
    assert alone.held_out_after < alone.held_out_before

    before = read_safetensors(run / "model.safetensors")[0]
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    (run / "model.safetensors").unlink()
    two("--resume", str(run))
    after = read_safetensors(run / "model.safetensors")[0]
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
