"""This library as a participant: ``python -m benchmarks.peers.statescan_peer FOLDER PRECISION THREADS``."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import statescan as ss
from benchmarks.peers.serve import serve
from benchmarks.peers.torch_model import TorchModel, dtype_of


class Statescan(TorchModel):
    """The model trains; the engine infers."""

    model: ss.LanguageModel

    def __init__(self, folder: str, precision: str, threads: int) -> None:
        torch.set_num_threads(threads)
        if precision == "int8" or precision == "int4":
            self.model = ss.from_pretrained(folder)
            ss.quantize(self.model, precision)  # type: ignore[arg-type]
        else:
            self.model = ss.from_pretrained(folder, dtype=dtype_of(precision))
        self.vocabulary = self.model.vocab_size

    @functools.cached_property
    def infer(self) -> ss.Engine:
        """Made when it is first needed: training does without."""
        return ss.Engine(self.model)

    def run(self, ids: Tensor) -> Tensor:
        """See TorchModel."""
        return self.infer.scan(ids, logits_at="last")[0]

    def start(self, ids: Tensor) -> Any:
        """See TorchModel."""
        return self.infer.scan(ids, logits_at="last")[1]

    def step(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """See TorchModel."""
        return self.infer.step(ids, state, inplace=True)

    def loss(self, ids: Tensor) -> Tensor:
        """See TorchModel."""
        return self.model.loss(self.model(ids), F.pad(ids[:, 1:], (0, 1), value=-100))

    def info(self) -> dict[str, Any]:
        """See TorchModel; without the embedding where the head has a copy; and the bytes that a weight takes, scales included."""
        embedding, head = self.model.backbone.embedding.weight, self.model.lm_head.weight
        unread = 0 if embedding.data_ptr() == head.data_ptr() else embedding.numel() * embedding.element_size()
        info = super().info()
        info["bytes"] -= unread
        body = [module for module in self.model.backbone.modules() if hasattr(module, "in_features")]
        return info | {"bytes a weight": _width(body), "bytes a weight of the head": _width([self.model.lm_head])}


def _width(linears: list[Any]) -> float:
    tensors = [tensor for linear in linears for name, tensor in (*linear.named_parameters(), *linear.named_buffers()) if name != "bias"]
    return sum(t.numel() * t.element_size() for t in tensors) / sum(linear.in_features * linear.out_features for linear in linears)


if __name__ == "__main__":
    serve(lambda: Statescan(sys.argv[1], sys.argv[2], int(sys.argv[3])))
