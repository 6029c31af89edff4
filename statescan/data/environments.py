"""Environments to act in: gymnasium's by their ids, and a memory task of our own, many copies of which are stepped as arrays.

Importing this module registers ``statescan/RepeatPrevious-v0`` and its longer kin with gymnasium.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from statescan.registry import nearest

try:
    import gymnasium
except ImportError as error:
    raise ImportError("environments need gymnasium: pip install 'statescan[rl]'") from error

from gymnasium.envs.registration import EnvSpec
from gymnasium.error import DependencyNotInstalled, ResetNeeded
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

_SUITS, _CARDS = 4, 52


class RepeatPreviousVector(VectorEnv):
    """Copies of :class:`RepeatPrevious` side by side: a step of all of them is a few operations on arrays.

    Ended copies are reset by the caller (``AutoresetMode.DISABLED``): ``reset(seed=[...], options={"reset_mask": ended})``.
    """

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 - gymnasium's own declaration

    def __init__(self, num_envs: int = 1, k: int = 4, decks: int = 1) -> None:
        if not 1 <= k < _CARDS * decks:
            raise ValueError(f"k must lie between 1 and {_CARDS * decks - 1}, for {decks} decks; got {k}")
        self.num_envs, self.k, self.cards = num_envs, k, _CARDS * decks
        self.single_observation_space = self.single_action_space = Discrete(_SUITS)
        self.observation_space = self.action_space = batch_space(Discrete(_SUITS), num_envs)
        self._deck = np.zeros((num_envs, self.cards), np.int64)
        self._at = np.full(num_envs, self.cards - 1)
        self._rngs: list[np.random.Generator | None] = [None] * num_envs

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Shuffle the decks of all copies, or of those in ``options["reset_mask"]``, and show each its first card."""
        if isinstance(seed, int):
            seed = [seed + i for i in range(self.num_envs)]
        rows = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        for i in np.flatnonzero(rows).tolist():
            own, rng = None if seed is None else seed[i], self._rngs[i]
            if own is not None or rng is None:
                self._rngs[i] = rng = np_random(own)[0]
            self._deck[i] = shuffled(rng, self.cards)
            self._at[i] = 0
        return self._shown(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Judge the answers, then show the next cards."""
        if (self._at == self.cards - 1).any():
            raise ResetNeeded("an episode has ended: reset it before the next step")
        asked = self._at - (self.k - 1)
        right = self._deck[np.arange(self.num_envs), asked.clip(0)] == actions
        reward = np.where(asked >= 0, np.where(right, 1.0, -1.0), 0.0) / (self.cards - self.k)
        self._at += 1
        return self._shown(), reward, self._at == self.cards - 1, np.zeros(self.num_envs, bool), {}

    def _shown(self) -> np.ndarray:
        return self._deck[np.arange(self.num_envs), self._at]


class RepeatPrevious(gymnasium.Env):
    """Cards of a shuffled deck are shown one by one; name the suit of the card shown k - 1 steps before the present one.

    The rules of RepeatPrevious of POPGym (Morad et al., "POPGym: Benchmarking Partially Observable Reinforcement Learning", 2023,
    https://arxiv.org/abs/2303.01859): +-1 / (cards - k) for a right or wrong answer, so that returns lie in [-1, 1]; an episode of
    cards - 1 steps. There the end counts as a truncation; here as a termination, for no card is left.

    Args:
        k: k = 1 is the present card.
        decks: of 52 cards.
    """

    def __init__(self, k: int = 4, decks: int = 1) -> None:
        self._one = RepeatPreviousVector(1, k, decks)
        self.observation_space = self.action_space = Discrete(_SUITS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Shuffle, and show the first card."""
        super().reset(seed=seed)
        self._one._rngs = [self.np_random]
        return int(self._one.reset()[0][0]), {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """Judge the answer, and show the next card."""
        shown, reward, over, _, _ = self._one.step(np.array([action]))
        return int(shown[0]), float(reward[0]), bool(over[0]), False, {}


def shuffled(rng: np.random.Generator, cards: int) -> np.ndarray:
    """The suits of a shuffled deck."""
    return rng.permutation(cards) % _SUITS


for _name, _k, _decks in (("", 4, 1), ("Medium", 32, 2), ("Hard", 64, 3)):
    gymnasium.register(
        f"statescan/RepeatPrevious{_name}-v0",
        entry_point="statescan.data.environments:RepeatPrevious",
        vector_entry_point="statescan.data.environments:RepeatPreviousVector",
        kwargs={"k": _k, "decks": _decks},
    )


def find(name: str) -> EnvSpec:
    """What is registered under an id, ``Name-v0`` or ``space/Name-v0``; ``module:Name-v0`` imports the module that registers it first."""
    module, _, name = name.rpartition(":")
    if module:
        importlib.import_module(module)
    if name not in gymnasium.registry:
        raise ValueError(f"there is no environment {name!r}{nearest(name, gymnasium.registry)}")
    return gymnasium.registry[name]


def make(name: str, copies: int, options: Mapping[str, Any] | None = None) -> VectorEnv:
    """Copies of an environment behind one interface, to be reset by the caller. ``options`` go to its constructor."""
    spec, given = find(name), dict(options or {})
    try:
        if str(spec.vector_entry_point).startswith("statescan."):
            return gymnasium.make_vec(spec, copies, vectorization_mode="vector_entry_point", **given)
        makers = [lambda: gymnasium.make(spec, disable_env_checker=True, **given)] * copies
        return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
    except DependencyNotInstalled as error:
        raise ImportError(f"{name} cannot be made: {error}") from error
    except TypeError as error:
        raise ValueError(f"{name} does not take {given}: {error}") from error


# -- spaces as numbers ---------------------------------------------------------------------------------------------------------


class Observations:
    """Observations as rows of float32: one-hot for what is counted; boxes flat, scaled to [-1, 1] where they have bounds."""

    def __init__(self, space: Space) -> None:
        self.space = space
        if isinstance(space, Discrete):
            self.width = int(space.n)
        elif isinstance(space, MultiDiscrete):
            self.width = int(space.nvec.sum())
        elif isinstance(space, MultiBinary):
            self.width = int(np.prod(space.shape))
        elif isinstance(space, Box):
            self.width = int(np.prod(space.shape))
            self._middle, self._half = _scale(space)
        else:
            raise ValueError(
                f"observations must be a Box, Discrete, MultiDiscrete or MultiBinary; got {type(space).__name__}: "
                "register the environment with gymnasium.wrappers.FlattenObservation around it"
            )

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """(n, ...) -> (n, width)."""
        if isinstance(self.space, Discrete):
            return _one_hot(batch - self.space.start, self.width)
        flat = np.asarray(batch).reshape(len(batch), -1)
        if isinstance(self.space, MultiDiscrete):
            sizes, values = self.space.nvec.reshape(-1), flat - self.space.start.reshape(-1)
            return np.concatenate([_one_hot(values[:, i], int(n)) for i, n in enumerate(sizes)], axis=1)
        if isinstance(self.space, MultiBinary):
            return flat.astype(np.float32)
        return ((flat - self._middle) / self._half).astype(np.float32)


class Actions:
    """Actions as a policy gives them: a number from 0, or values in [-1, 1] for a box with bounds."""

    def __init__(self, space: Space) -> None:
        self.space, self.continuous = space, isinstance(space, Box)
        if isinstance(space, Discrete):
            self.width = int(space.n)
        elif isinstance(space, Box):
            self.width = int(np.prod(space.shape))
            self._middle, self._half = _scale(space)
        else:
            raise ValueError(f"actions must be Discrete or a Box; got {space}")

    def __call__(self, chosen: np.ndarray) -> np.ndarray:
        """What a policy chose, (n,) or (n, width), as the environment takes it."""
        if isinstance(self.space, Discrete):
            return chosen + self.space.start
        assert isinstance(self.space, Box)
        flat = chosen * self._half + self._middle
        return flat.reshape(len(flat), *self.space.shape).clip(self.space.low, self.space.high).astype(self.space.dtype)

    def features(self, chosen: np.ndarray) -> np.ndarray:
        """What a policy chose as rows of float32."""
        return chosen.clip(-1, 1).astype(np.float32) if self.continuous else _one_hot(chosen, self.width)

    def random(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Choices that are all as likely."""
        return rng.uniform(-1, 1, (n, self.width)) if self.continuous else rng.integers(self.width, size=n)


def _one_hot(values: np.ndarray, width: int) -> np.ndarray:
    return (np.asarray(values)[:, None] == np.arange(width)).astype(np.float32)


def _scale(space: Box) -> tuple[np.ndarray, np.ndarray]:
    """Middle and half of the range of each entry; 0 and 1 where it has no bounds (or only those of its number format)."""
    low, high = (np.asarray(bound, np.float64).reshape(-1) for bound in (space.low, space.high))
    bounded = (high - low < 1e30) & (high > low)
    low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    return (low + high) / 2, (high - low) / 2
