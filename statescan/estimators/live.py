"""A sequence as it comes in, a few positions at a time, to the answers of a fitted estimator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from statescan.backbones import FlatState
from statescan.state import state as declare_state

if TYPE_CHECKING:
    from statescan.estimators.supervised import SequenceEstimator


@declare_state
class SequenceState(NamedTuple):
    """Where a stream stands."""

    backbone: FlatState
    waiting: Tensor
    """(n, C): positions that do not fill a frame yet."""
    total: Tensor
    """(D,): sum of the features so far; without a mean over them the last ones."""
    frames: Tensor
    """int64 (): how many features that is a sum of."""


class Stream:
    """One sequence, as it comes in. A frame costs one step, however long the sequence; ``state`` continues it elsewhere."""

    def __init__(self, estimator: SequenceEstimator, state: SequenceState | None = None) -> None:
        self.estimator = estimator
        channels, width = estimator.n_features_in_, estimator.d_model
        if state is None:
            backbone = estimator.model_.backbone.init_state(1)
            state = SequenceState(backbone, torch.zeros(0, channels), torch.zeros(width), torch.zeros((), dtype=torch.int64))
        if not isinstance(state, SequenceState) or state.waiting.shape[1] != channels or state.total.shape != (width,):
            raise ValueError(f"the state is not that of a stream through this {estimator._kind}")
        self.state = state

    def push(self, positions: Any) -> Iterator[np.ndarray]:
        """The positions that came, (n, C), or (n,) of one channel; yields the answer after each frame that they complete.

        An answer is (K,) for the whole sequence so far, of a classifier the probabilities; with ``per_step`` (answers of the frame, K).
        """
        new = np.asarray(positions, np.float32).reshape(-1, self.estimator.n_features_in_)
        if np.isinf(new).any():
            raise ValueError("a value is infinite; NaN is what says that nothing was observed")
        self.state = self.state._replace(waiting=torch.cat([self.state.waiting, torch.from_numpy(new)]))
        stride = self.estimator.stride
        while len(self.state.waiting) >= stride:
            frame, rest = self.state.waiting[:stride], self.state.waiting[stride:]
            self.state = self._after(frame)._replace(waiting=rest.clone())
            yield self._answer(self.state)

    def now(self) -> np.ndarray:
        """The answer if the sequence ended here: that for all that came. With ``per_step`` those of the positions that wait."""
        waiting = len(self.state.waiting)
        state = self._after(self.state.waiting) if waiting else self.state
        if not int(state.frames):
            raise ValueError("nothing has come yet: there is nothing to answer for")
        answer = self._answer(state)
        if not self.estimator.per_step:
            return answer
        return answer[: min(waiting, self.estimator.answers_)]

    @torch.no_grad()
    def _after(self, frame: Tensor) -> SequenceState:
        model, before = self.estimator.model_, self.state
        x, _ = self.estimator._frames([frame.numpy()])
        h, backbone = model.backbone.step(model.encoder(x[:, 0]), before.backbone)
        if model.pool != "mean":
            return before._replace(backbone=backbone, total=h[0], frames=torch.ones_like(before.frames))
        return before._replace(backbone=backbone, total=before.total + h[0], frames=before.frames + 1)

    @torch.no_grad()
    def _answer(self, state: SequenceState) -> np.ndarray:
        output = self.estimator._each(self.estimator.model_.decoder(state.total / state.frames).unsqueeze(0))[0]
        answers = self.estimator._answer(output.numpy())
        return answers if self.estimator.per_step else answers[0]
