"""The optimisers of a run, made from the groups that the model hands out."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

OptimizerName = Literal["adamw", "muon"]


def make_optimizers(
    model: nn.Module, name: OptimizerName, lr: float, betas: tuple[float, float], weight_decay: float, muon_lr: float
) -> list[Optimizer]:
    """AdamW on everything; or Muon on the matrices of the layers and AdamW on the rest (embedding, head, dynamics, vectors).

    Each group remembers its peak rate as ``peak``.
    """
    groups: list[dict[str, Any]] = model.parameter_groups(weight_decay)  # type: ignore[operator]
    optimizers: list[Optimizer] = []
    if name == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"optimizer='muon' needs a torch that has torch.optim.Muon (2.9 or later); this is {torch.__version__}")
        matrices = _layer_matrices(model)
        chosen = [p for group in groups if group["weight_decay"] > 0 or weight_decay == 0 for p in group["params"] if id(p) in matrices]
        taken = {id(p) for p in chosen}
        groups = [{**group, "params": [p for p in group["params"] if id(p) not in taken]} for group in groups]
        if chosen:
            optimizers.append(torch.optim.Muon(chosen, lr=muon_lr, weight_decay=weight_decay, momentum=0.95))
    groups = [group for group in groups if group["params"]]
    if groups:
        fused = {p.device.type for group in groups for p in group["params"]} <= {"cpu", "cuda", "mps", "xpu"}
        optimizers.append(torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def set_rate(optimizers: list[Optimizer], factor: float) -> None:
    """Every group's rate: its peak times the factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def _layer_matrices(model: nn.Module) -> set[int]:
    """Weights of Linear modules, but for those shared with an embedding or as wide as the vocabulary."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    vocab = {m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)}
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return {id(m.weight) for m in linears if id(m.weight) not in embeddings and m.out_features not in vocab}
