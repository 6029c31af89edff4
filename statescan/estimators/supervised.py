"""What a classifier and a regressor of sequences share: frames, the network, the fit, streams and files."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from statescan import heads
from statescan.backbones import FlatBackbone, HierarchicalBackbone
from statescan.data.labelled import as_sequences
from statescan.estimators.base import Estimator
from statescan.estimators.live import SequenceState, Stream
from statescan.files import read_json, read_safetensors, write_json, write_safetensors
from statescan.procedures.fit import Fitted, Schedule, fit
from statescan.procedures.runs import RunFolder
from statescan.spec import Spec
from statescan.timeline import Timeline

_TOGETHER = 64
"""Sequences read at once."""

_LENGTH_SPREAD = 0.1
"""Standard deviation of what is added to the logarithm of a length before sequences are put into batches by it: which meet changes."""

S = TypeVar("S", bound="SequenceEstimator")


class SequenceEstimator(Estimator):
    """Learn from sequences of any length, (T,) or (T, C) each, NaN where nothing was observed.

    A sequence is cut into frames of ``stride`` positions, each mapped by one learned matrix to the width of the model (a strided
    convolution); residual blocks of a mixer and a gated MLP follow, the mean over the frames, and a linear map to the answer.

    Args:
        mixer: what looks across positions: the name of a part, a Spec, or a function of the width that makes a module.
        d_model: width.
        layers: mixers, each with a gated MLP behind it.
        low_layers: mixers of a lower level in the matrix's place, which reads each frame by itself (https://arxiv.org/abs/2402.10211).
        stride: positions a frame.
        pool: ``mean`` over all frames, or the ``last``.
        per_step: an answer for each position, or for each frame, as the targets have it; then nothing is pooled.
        augment: in training, sequences are made louder or softer, and begin anywhere in their first frame (for sound).
        steps, lr, batch_size, weight_decay, patience: of the fit; see :class:`statescan.procedures.fit.Schedule`.
        dropout: of what each block adds.
        val_fraction: of the training sequences, set apart to decide which weights were best; 0 keeps the last ones.
        seed: of weights, batches and the validation part.
        quiet: no progress bar.

    After ``fit``: ``n_features_in_`` (channels), ``fitted_``, ``model_``.
    """

    _kind: ClassVar[str]
    """``classifier`` or ``regressor``."""
    _head: ClassVar[type[heads.SequenceClassifier]]

    def __init__(
        self,
        mixer: str | Spec[Any] | Callable[[int], nn.Module] = "Mamba",
        d_model: int = 64,
        layers: int = 4,
        low_layers: int = 0,
        stride: int = 1,
        pool: Literal["mean", "last"] = "mean",
        per_step: bool = False,
        augment: bool = False,
        steps: int = 1000,
        lr: float = 2e-3,
        batch_size: int = 32,
        weight_decay: float = 0.05,
        patience: int = 0,
        dropout: float = 0.1,
        val_fraction: float = 0.1,
        seed: int = 0,
        quiet: bool = True,
    ) -> None:
        self.mixer, self.d_model, self.layers, self.low_layers, self.stride, self.pool = mixer, d_model, layers, low_layers, stride, pool
        self.per_step, self.augment, self.steps, self.lr, self.batch_size = per_step, augment, steps, lr, batch_size
        self.weight_decay, self.patience, self.dropout, self.val_fraction = weight_decay, patience, dropout, val_fraction
        self.seed, self.quiet = seed, quiet

    # -- what the two differ in -------------------------------------------------------------------------------------------------

    def _learn_targets(self, y: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
        """Keep what the answers are made of; (the targets as the loss takes them, the mark of a missing one)."""
        raise NotImplementedError

    def _outputs(self) -> int:
        """Numbers an answer."""
        raise NotImplementedError

    def _answer(self, output: np.ndarray) -> np.ndarray:
        """Outputs of the network (..., K) to answers (..., K)."""
        raise NotImplementedError

    def predict(self, X: Any) -> Any:
        """The answers as they are meant."""
        raise NotImplementedError

    def _described(self) -> dict[str, Any]:
        """What :meth:`_learn_targets` kept, as plain data."""
        raise NotImplementedError

    def _recall(self, saved: dict[str, Any]) -> None:
        """The inverse of :meth:`_described`."""
        raise NotImplementedError

    # -- fitting ----------------------------------------------------------------------------------------------------------------

    def fit(self: S, X: Any, y: Any, folder: RunFolder | None = None, resume_with: str = "") -> S:
        """Learn from an array (n, L) or (n, L, C), or a list of sequences, and their targets.

        Args:
            X: the sequences.
            y: one target each; with ``per_step`` one for each position, or for each frame, of each.
            folder: where checkpoints go; a fit that was stopped continues from there.
            resume_with: the command that continues it.
        """
        self._check()
        sequences = as_sequences(X)
        targets, missing = self._learn_targets(self._per_sequence(sequences, y))
        self.n_features_in_ = sequences[0].shape[1]
        every = np.concatenate(sequences)
        if np.isnan(every).all(0).any():
            raise ValueError(f"channel {int(np.isnan(every).all(0).argmax())} has no observed value in any sequence")
        spread = np.nanstd(every, 0, dtype=np.float64)  # float32 sums of several channels stop growing after millions of positions
        self.mean_ = np.nanmean(every, 0, dtype=np.float64).astype(np.float32)
        self.spread_ = np.where(spread > 0, spread, 1).astype(np.float32)
        if not spread.any():
            raise ValueError(f"every value of every sequence is {np.nanmean(every):g}: there is nothing to learn from")
        self.missing_ = bool(np.isnan(every).any())
        self.reading_: dict[str, Any] = {}
        """How files became these sequences: what a command that reads more of them has to know."""
        order = np.random.default_rng(self.seed).permutation(len(sequences))
        held = order[: round(self.val_fraction * len(sequences))]
        taught = order[len(held) :]
        if not len(taught):
            raise ValueError(f"val_fraction={self.val_fraction} leaves none of {len(sequences)} sequences to learn from")
        torch.manual_seed(self.seed)
        self.model_ = self._build()
        lengths = np.array([len(sequences[i]) for i in taught])
        epoch = -(-len(taught) // self.batch_size)

        @functools.lru_cache(1)
        def batches(number: int) -> list[np.ndarray]:
            return _batches(taught, lengths, epoch, np.random.default_rng([self.seed, number]))

        def loss_of(step: int) -> Tensor:
            rows = batches(step // epoch)[step % epoch]
            draw = np.random.default_rng([self.seed, step, 1])
            batch = [self._changed(sequences[i], draw) for i in rows] if self.augment else [sequences[i] for i in rows]
            output = self._each(self.model_(*self._frames(batch)))
            return self.model_.loss(output, torch.from_numpy(_side_by_side([targets[i] for i in rows], output.shape[1], missing)))

        def validate() -> float:
            output = np.concatenate(self._scores([sequences[i] for i in held]))
            return float(self.model_.loss(torch.from_numpy(output), torch.from_numpy(np.concatenate([targets[i] for i in held]))))

        every_epoch = max(1, min(epoch, self.steps // 4))
        schedule = Schedule(self.steps, self.lr, weight_decay=self.weight_decay, eval_every=every_epoch, patience=self.patience)
        self.fitted_: Fitted = fit(
            self.model_, loss_of, validate if len(held) else None, schedule, folder=folder, quiet=self.quiet, resume_with=resume_with
        )
        self.model_.eval()
        return self

    def _check(self) -> None:
        for name in ("d_model", "layers", "stride", "steps", "lr", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0; got {getattr(self, name)}")
        for name in ("dropout", "val_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1); got {getattr(self, name)}")
        if self.low_layers < 0:
            raise ValueError(f"low_layers must be 0 or more; got {self.low_layers}")
        if self.per_step and self.augment:
            raise ValueError("augment moves where a sequence begins, and its targets would not move along: leave it out with per_step")
        self.make_mixer(self.d_model)  # what it refuses, it refuses now

    def _per_sequence(self, sequences: Sequence[np.ndarray], y: Any) -> list[np.ndarray]:
        """The targets of each sequence, (answers, ...): one, or with ``per_step`` one a position or one a frame."""
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        if not self.per_step:
            array = np.asarray(y)
            if len(array.shape) == 0 or len(array) != len(sequences):
                raise ValueError(f"there must be one target a sequence: got {len(sequences)} sequences and targets of shape {array.shape}")
            self.answers_ = 1
            return list(array[:, None])
        targets = [np.asarray(row) for row in y]
        if len(targets) != len(sequences) or any(row.ndim == 0 for row in targets):
            raise ValueError(f"per_step needs a list of targets for each of {len(sequences)} sequences; got {len(targets)}")
        lengths = [len(row) for row in targets]
        if lengths == [len(s) for s in sequences]:
            self.answers_ = self.stride
        elif lengths == [self._count(s) for s in sequences]:
            self.answers_ = 1
        else:
            i = next(i for i, s in enumerate(sequences) if lengths[i] not in (len(s), self._count(s)) or lengths[i] != len(s))
            raise ValueError(
                f"per_step needs a target for each position, or for each frame, of every sequence: sequence {i} has {len(sequences[i])} "
                f"positions in {self._count(sequences[i])} frames and {lengths[i]} targets"
            )
        return targets

    def _count(self, sequence: np.ndarray) -> int:
        return -(-len(sequence) // self.stride)

    def make_mixer(self, width: int) -> nn.Module:
        """A layer's mixer."""
        return (Spec(self.mixer) if isinstance(self.mixer, str) else self.mixer)(width)

    def _build(self) -> heads.SequenceClassifier:
        parts: dict[str, Callable[[int], nn.Module]] = {"M": self.make_mixer, "F": Spec("GatedMLP", d_ff=2 * self.d_model)}
        channels = self.n_features_in_ * (1 + self.missing_)
        model = self._head(
            self._outputs() * self.answers_, self.d_model, self.stride * channels, f"(MF)*{self.layers}", parts,
            pool="none" if self.per_step else self.pool, norm="rms", norm_f=True, dropout=self.dropout,
        )  # fmt: skip
        if self.low_layers:
            low, high = (
                FlatBackbone(self.d_model, f"(MF)*{self.low_layers}", parts, dropout=self.dropout),
                cast(FlatBackbone, model.backbone),
            )
            model.encoder, model.backbone = nn.Identity(), HierarchicalBackbone(channels, self.stride, lambda: low, lambda: high)
        return model

    def _changed(self, sequence: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        start = int(draw.integers(min(self.stride, len(sequence))))
        return sequence[start:] * np.float32(2 ** draw.uniform(-1, 1))

    def _frames(self, sequences: Sequence[np.ndarray]) -> tuple[Tensor, Timeline | None]:
        """Sequences side by side, (B, frames, stride C), scaled, zeros behind their ends; and which frames exist."""
        counts = [self._count(s) for s in sequences]
        frames = np.zeros((len(sequences), max(counts) * self.stride, self.n_features_in_ * (1 + self.missing_)), np.float32)
        for row, sequence in zip(frames, sequences, strict=True):
            scaled = (sequence - self.mean_) / self.spread_
            row[: len(sequence), : self.n_features_in_] = np.nan_to_num(scaled)
            if self.missing_:
                row[: len(sequence), self.n_features_in_ :] = np.isnan(scaled)
        mask = torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)
        x = torch.from_numpy(frames).unflatten(1, (max(counts), self.stride)).flatten(2)
        return x, None if bool(mask.all()) else Timeline.padded(mask)

    def _each(self, output: Tensor) -> Tensor:
        """What the network gives, as (B, answers, K)."""
        return output.float().reshape(len(output), -1, self._outputs())

    # -- answering --------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _scores(self, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        """(answers, K) of each, those of similar lengths read together."""
        order = np.argsort([len(s) for s in sequences], kind="stable")
        scores: list[np.ndarray] = [np.empty(0)] * len(sequences)
        for first in range(0, len(order), _TOGETHER):
            rows = order[first : first + _TOGETHER]
            output = self._each(self.model_(*self._frames([sequences[i] for i in rows])))
            for i, row in zip(rows, output.numpy(), strict=True):
                scores[i] = row[: len(sequences[i]) if self.answers_ > 1 else self._count(sequences[i])]
        return scores

    def _answers(self, X: Any) -> Any:
        """(n, K) answers; with ``per_step`` a list of (answers, K), or one array of them if X is one."""
        self._fitted()
        found = [self._answer(row) for row in self._scores(as_sequences(X, self.n_features_in_))]
        if self.per_step:
            return np.stack(found) if isinstance(X, np.ndarray) else found
        return np.concatenate(found)

    def _all_targets(self, y: Any) -> np.ndarray:
        """The targets of all sequences below each other."""
        return np.concatenate([np.asarray(row) for row in y]) if self.per_step else np.asarray(y)

    def stream(self, state: SequenceState | None = None) -> Stream:
        """Answer for a sequence as it comes in, from its beginning or from a state; see :class:`statescan.estimators.live.Stream`."""
        self._fitted()
        if not self.model_.backbone.causal:
            raise ValueError(f"this {self._kind} looks ahead: it needs whole sequences; fit one with a causal mixer")
        return Stream(self, state)

    def _fitted(self) -> None:
        if not hasattr(self, "model_"):
            name = type(self).__name__
            raise _not_fitted()(f"this {name} is not fitted yet: call fit first, or {name}.load")

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks an estimator, where it is installed."""
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        classifies = self._kind == "classifier"
        return Tags(
            estimator_type=self._kind, target_tags=TargetTags(required=True, multi_output=not classifies), transformer_tags=None,
            classifier_tags=ClassifierTags() if classifies else None, regressor_tags=None if classifies else RegressorTags(),
            input_tags=InputTags(three_d_array=True, allow_nan=True),
        )  # fmt: skip

    # -- files ------------------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """A folder: classifier.json or regressor.json, and model.safetensors."""
        self._fitted()
        if not isinstance(self.mixer, (str, Spec)):
            raise ValueError("only an estimator whose mixer is a name or a Spec can be saved")
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        spec = self.mixer.to_dict() if isinstance(self.mixer, Spec) else self.mixer
        write_json(path / f"{self._kind}.json", {
            "version": 1, "arguments": {**self.get_params(), "mixer": spec}, **self._described(), "answers": self.answers_,
            "missing": self.missing_, "mean": self.mean_.tolist(), "spread": self.spread_.tolist(), "reading": self.reading_,
        })  # fmt: skip
        write_safetensors(path / "model.safetensors", self.model_.state_dict())

    @classmethod
    def load(cls: type[S], path: str | os.PathLike[str]) -> S:
        """What :meth:`save` wrote."""
        file = Path(path) / f"{cls._kind}.json"
        if not file.is_file():
            raise ValueError(f"{path} holds no {cls._kind}: it has no {file.name}")
        saved = read_json(file)
        arguments = saved["arguments"]
        if isinstance(arguments["mixer"], dict):
            arguments["mixer"] = Spec.from_dict(arguments["mixer"])
        self = cls(**arguments)
        self._recall(saved)
        self.answers_, self.missing_, self.reading_ = saved["answers"], saved["missing"], saved["reading"]
        self.mean_, self.spread_ = np.array(saved["mean"], np.float32), np.array(saved["spread"], np.float32)
        self.n_features_in_ = len(self.mean_)
        self.model_ = self._build()
        self.model_.load_state_dict(read_safetensors(Path(path) / "model.safetensors")[0])
        self.model_.eval()
        return self


def _side_by_side(targets: list[np.ndarray], answers: int, missing: float) -> np.ndarray:
    """(B, answers, ...), missing behind their ends."""
    rows = np.full((len(targets), answers, *targets[0].shape[1:]), missing, targets[0].dtype)
    for row, target in zip(rows, targets, strict=True):
        row[: len(target)] = target
    return rows


def _not_fitted() -> type[ValueError]:
    """scikit-learn's own error where it is installed: its tools look for it."""
    try:
        from sklearn.exceptions import NotFittedError
    except ImportError:
        return ValueError
    return NotFittedError  # type: ignore[no-any-return]


def _batches(rows: np.ndarray, lengths: np.ndarray, number: int, draw: np.random.Generator) -> list[np.ndarray]:
    """An epoch's batches, which hold every row once: rows of roughly equal length, so that little of a batch is padding."""
    order = (np.log(lengths) + draw.normal(0, _LENGTH_SPREAD, len(rows))).argsort()
    parts = np.array_split(rows[order], number)
    return [parts[i] for i in draw.permutation(number)]
