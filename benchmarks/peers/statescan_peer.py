"""This library as a participant: ``python -m benchmarks.peers.statescan_peer FOLDER PRECISION THREADS``."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

import statescan as ss
from benchmarks.peers.serve import serve
from benchmarks.peers.torch_model import TorchModel, dtype_of


class Statescan(TorchModel):
    """The model trains; the engine infers."""

    def __init__(self, folder: str, precision: str, threads: int) -> None:
        torch.set_num_threads(threads)
        if precision in ("int8", "int4"):
            self.model = ss.quantize(ss.from_pretrained(folder), precision)  # type: ignore[attr-defined]
        else:
            self.model = ss.from_pretrained(folder, dtype=dtype_of(precision))
        self.vocabulary = self.model.vocab_size
        self.precision = precision
        self.infer = ss.Engine(self.model)  # type: ignore[attr-defined]

    def run(self, ids: Tensor) -> Tensor:
        """See TorchModel."""
        return self.infer.scan(ids, self.infer.init_state(ids.shape[0]), logits_at="last")[0]

    def start(self, ids: Tensor) -> Any:
        """See TorchModel."""
        return self.infer.scan(ids, self.infer.init_state(ids.shape[0]), logits_at="last")[1]

    def step(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        """See TorchModel."""
        return self.infer.step(ids, state)

    def loss(self, ids: Tensor) -> Tensor:
        """See TorchModel."""
        return self.model.loss(self.model(ids)[:, :-1], ids[:, 1:])


if __name__ == "__main__":
    serve(lambda: Statescan(sys.argv[1], sys.argv[2], int(sys.argv[3])))
