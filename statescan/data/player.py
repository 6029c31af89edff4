"""Environments being played: what the policy reads, where episodes begin, and how to find the place again after a break.

An environment cannot be saved. But each episode here begins from a seed of its own, made of the run's seed, the copy and the episode's
number, so that the seed and the actions since then say where an episode stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Space
from gymnasium.vector import VectorEnv
from torch import Tensor

from statescan.data.environments import Actions, Observations


class Inputs:
    """What a policy reads: the observation, and with ``previous`` the action and the reward before it (zeros where an episode begins)."""

    def __init__(self, observations: Space, actions: Space, previous: bool) -> None:
        self.observations, self.actions, self.previous = Observations(observations), Actions(actions), previous
        self.width = self.observations.width + previous * (self.actions.width + 1)

    def __call__(self, observed: np.ndarray, chosen: np.ndarray, reward: np.ndarray, start: np.ndarray) -> Tensor:
        """Of n copies -> (n, width)."""
        x = self.observations(observed)
        if self.previous:
            squashed = np.sign(reward) * np.log1p(np.abs(reward))  # whatever the unit
            before = np.concatenate([self.actions.features(chosen), squashed[:, None].astype(np.float32)], axis=1)
            x = np.concatenate([x, np.where(start[:, None], np.float32(0), before)], axis=1)
        return torch.from_numpy(x)

    def nothing(self, n: int) -> np.ndarray:
        """A choice of the right shape, before the first."""
        return np.zeros((n, self.actions.width)) if self.actions.continuous else np.zeros(n, np.int64)


class Step(NamedTuple):
    """What an action led to, (n,) each. ``x`` is read next; where the episode ended, ``last`` is what it ended with."""

    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    last: Tensor
    """(n, width)."""
    totals: list[float]
    """Returns of the episodes that ended."""


class Player:
    """Copies of an environment, whose episodes follow one another.

    Args:
        envs: to be reset by their caller.
        previous: the policy reads the action and reward before, too.
        seed: of the episodes.

    ``x`` (n, width) is what the policy reads now; ``start`` bool (n,) where an episode begins with it.
    """

    def __init__(self, envs: VectorEnv, previous: bool, seed: Sequence[int]) -> None:
        self.envs, self.seed, self.n = envs, tuple(seed), envs.num_envs
        self.inputs = Inputs(envs.single_observation_space, envs.single_action_space, previous)
        self.episodes = np.full(self.n, -1)
        self.lengths, self.totals = np.zeros(self.n, np.int64), np.zeros(self.n)
        self._log: list[np.ndarray] = []
        self._begin(np.ones(self.n, bool))

    def step(self, chosen: np.ndarray) -> Step:
        """Act; an episode that ends is followed by the next at once."""
        observed, reward, terminated, truncated, _ = self.envs.step(self.inputs.actions(chosen))
        self.lengths += 1
        self.totals += reward
        # What came before the current episode of every copy is not needed any more.
        self._log = [*self._log[max(0, len(self._log) + 1 - int(self.lengths.max())) :], chosen]
        self.start = np.zeros(self.n, bool)
        self.x = last = self.inputs(observed, chosen, reward, self.start)
        ended = terminated | truncated
        totals = self.totals[ended].tolist()
        if ended.any():
            self._begin(ended)
        return Step(reward, terminated, truncated & ~terminated, last, totals)

    def _begin(self, rows: np.ndarray) -> None:
        self.episodes[rows] += 1
        self.lengths[rows], self.totals[rows] = 0, 0.0
        fresh = self.inputs(self._reset(rows), self.inputs.nothing(self.n), np.zeros(self.n), rows)
        self.start = rows
        self.x = fresh if rows.all() else torch.where(torch.from_numpy(rows)[:, None], fresh, self.x)

    def _reset(self, rows: np.ndarray) -> np.ndarray:
        seeds = [
            int(np.random.SeedSequence([*self.seed, i, int(episode)]).generate_state(1)[0]) if rows[i] else None
            for i, episode in enumerate(self.episodes)
        ]
        return self.envs.reset(seed=seeds, options={"reset_mask": rows.copy()})[0]  # type: ignore[arg-type]

    def saved(self) -> dict[str, Tensor]:
        """Where it stands: the number of each episode, its length so far, and the actions of all copies since the oldest began."""
        longest = int(self.lengths.max())
        actions = np.stack(self._log[len(self._log) - longest :]) if longest else np.zeros((0, *self.inputs.nothing(self.n).shape))
        return {name: torch.from_numpy(value.copy()) for name, value in
                (("episodes", self.episodes), ("lengths", self.lengths), ("actions", actions))}  # fmt: skip

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go to where another one stood, by acting as it did."""
        episodes, lengths, actions = (saved[name].numpy() for name in ("episodes", "lengths", "actions"))
        for t in range(len(actions) + 1):
            now = lengths == len(actions) - t
            if t == 0 or now.any():
                # At first all of them, for all have to act; a copy whose turn comes later begins again then.
                rows = now | (t == 0)
                self.episodes[rows] = episodes[rows] - 1
                self._begin(rows)
            if t < len(actions):
                self.step(actions[t])
