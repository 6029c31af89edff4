"""Law 8 over processes: DDP and FSDP2 on two gloo processes give the gradients of one process."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from statescan.protocols import Mixer
from statescan.testing.compare import LawError, expect_close
from statescan.testing.report import Report
from statescan.testing.subject import Subject, full_timeline

WORLD = 2


def law_distributed(build: Callable[[], nn.Module], subject: Subject, report: Report, ways: tuple[str, ...] = ("DDP", "FSDP2")) -> None:
    """Two processes with half of the batch each; values and averaged gradients equal one process with all of it.

    ``build`` makes the module again in each process, so it must be picklable; its weights are overwritten with the subject's. DDP looks
    for unused parameters only where a layer declares some (``unread``).
    """
    for way in ways:
        with report.comparing(8, f"{way} on {WORLD} processes"):
            if subject.batch_dependent:
                report.skip(8, way, "a row's output depends on the other rows (batch_dependent)")
                continue
            expected = _gradients(subject.fresh(), subject, range(2 * WORLD))
            weights = {name: tensor.detach().clone() for name, tensor in subject.module.state_dict().items()}
            plan = {"name": subject.name, "width": subject.width, "vocab_size": subject.vocab_size, "image": subject.image}
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            results = multiprocessing.get_context("spawn").SimpleQueue()
            arguments = (way, port, build, weights, plan, results)
            context = start_processes(_process, arguments, nprocs=WORLD, join=False, start_method="spawn")
            got = results.get()
            assert context is not None
            context.join()
            if isinstance(got, str):
                raise LawError(got)
            for name, tensor in expected.items():
                expect_close(name, torch.from_numpy(got[name]), tensor, subject.tolerance[torch.float32])


def _gradients(module: nn.Module, subject: Subject, rows: range) -> dict[str, Tensor]:
    """The mean over rows of a square loss on output and state; its gradient by parameter name."""
    x = subject.inputs(2 * WORLD, 7)[rows.start : rows.stop]
    line = full_timeline(subject, 2 * WORLD, 7)
    line = line and line._map(lambda field: field[rows.start : rows.stop])
    y, last = subject.call(module, x, line, None)
    (sum(t.double().pow(2).sum() for t in (y, *pytree.tree_leaves(last)) if t is not None) / len(rows)).backward()  # type: ignore[union-attr]
    found = {"output": y.detach()}
    for name, parameter in module.named_parameters():
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            gradient = gradient.full_tensor()
        found[f"gradient of {name.removeprefix('module.')}"] = torch.zeros(parameter.shape) if gradient is None else gradient.detach()
    return found


def _process(
    rank: int, way: str, port: int, build: Callable[[], nn.Module], weights: dict[str, Tensor], plan: dict[str, Any], results: Any
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    try:
        mine = _half(rank, way, build, weights, plan)
        outputs = [torch.empty_like(mine["output"]) for _ in range(WORLD)]
        dist.all_gather(outputs, mine["output"].contiguous())
        if rank == 0:
            results.put({**{k: v.numpy() for k, v in mine.items()}, "output": torch.cat(outputs).numpy()})
    except Exception as error:
        if rank == 0:
            results.put(traceback.format_exc(limit=-3))
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        # A wrapper that outlives the group joins the group's threads while it holds the interpreter's lock, for which they may wait.
        gc.collect()
        dist.destroy_process_group()


def _half(rank: int, way: str, build: Callable[[], nn.Module], weights: dict[str, Tensor], plan: dict[str, Any]) -> dict[str, Tensor]:
    """The gradients of this process's rows, averaged by the wrapper."""
    module = build()
    module.load_state_dict(weights)
    subject = Subject(module=module, **plan)
    if way == "DDP":
        module = DistributedDataParallel(module, find_unused_parameters=subject.unread)
    else:
        mesh = init_device_mesh("cpu", (WORLD,))
        for child in reversed(list(module.modules())[1:]):  # a mixer inside a mixer comes first
            if isinstance(child, Mixer):
                fully_shard(child, mesh=mesh)
        fully_shard(module, mesh=mesh)
    return _gradients(module, subject, range(2 * rank, 2 * rank + 2))
