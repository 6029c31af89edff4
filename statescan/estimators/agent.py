"""An agent whose memory is a state: made for an environment, taught, asked for actions one observation at a time, saved and loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from statescan.backbones import FlatState
from statescan.data.environments import make
from statescan.data.player import Inputs, Player
from statescan.estimators.base import Estimator
from statescan.files import read_json, read_safetensors, write_json, write_safetensors
from statescan.heads.actor_critic import ActorCritic, PolicyNorm
from statescan.layers import GatedMLP
from statescan.procedures import ppo
from statescan.procedures.ppo import PPO, Learned
from statescan.spec import Spec
from statescan.state import state as declare_state
from statescan.state import trim

_TAUGHT, _TEST = 4, 5
"""What a seed is for: the episodes that are learned from, and others."""
_TOGETHER = 64


@declare_state
class AgentState(NamedTuple):
    """What an agent remembers between two observations."""

    backbone: FlatState
    action: Tensor
    """The last one, (n,) or (n, width)."""


class Agent(Estimator):
    """A recurrent actor-critic for one environment.

    Args:
        env: id of a gymnasium environment, for example ``statescan/RepeatPrevious-v0``.
        env_options: arguments of its constructor.
        mixer: what looks across time: the name of a part, or a Spec.
        d_model: width.
        layers: mixers.
        d_ff: width of the gated MLP behind each mixer; 0: none.
        d_hidden: width of the layers before and behind the backbone.
        norm: of the backbone.
        previous: the action and reward before an observation are inputs, too.
        envs: copies of the environment to learn from.
        seed: of weights, episodes, actions and minibatches.
        memory: False puts a gated MLP with as many parameters in each mixer's place.

    ``model_`` is the network.
    """

    def __init__(
        self,
        env: str,
        env_options: Mapping[str, Any] | None = None,
        mixer: str | Spec[Any] = "S5",
        d_model: int = 64,
        layers: int = 1,
        d_ff: int = 128,
        d_hidden: int = 64,
        norm: PolicyNorm = "rms",
        previous: bool = True,
        envs: int = 64,
        seed: int = 0,
        memory: bool = True,
    ) -> None:
        self.env, self.env_options, self.mixer, self.d_model, self.layers = env, dict(env_options or {}), mixer, d_model, layers
        self.d_ff, self.d_hidden, self.norm, self.previous, self.envs = d_ff, d_hidden, norm, previous, envs
        self.seed, self.memory = seed, memory
        for name in ("d_model", "layers", "d_hidden", "envs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0; got {getattr(self, name)}")
        for name in ("d_ff", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more; got {getattr(self, name)}")
        one = make(env, 1, self.env_options)
        self.inputs_ = Inputs(one.single_observation_space, one.single_action_space, previous)
        one.close()
        torch.manual_seed(seed)
        parts: dict[str, Callable[[int], nn.Module]] = {"M": self._mixer, "F": Spec(GatedMLP, d_ff=max(1, d_ff))}
        self.model_ = ActorCritic(
            self.inputs_.width, self.inputs_.actions.width, self.inputs_.actions.continuous, d_model,
            f"({'MF' if d_ff else 'M'})*{layers}", parts, d_hidden, norm,
        ).eval()  # fmt: skip

    def _mixer(self, width: int) -> nn.Module:
        mixer = (self.mixer if isinstance(self.mixer, Spec) else Spec(self.mixer))(width)
        if self.memory:
            return mixer
        count = sum(p.numel() for p in mixer.parameters())
        return GatedMLP(width, max(1, round(count / (3 * width))))

    def learn(self, options: PPO | None = None, **run: Any) -> Learned:
        """Learn by :func:`statescan.procedures.ppo.train`, whose remaining arguments ``run`` holds."""
        player = Player(make(self.env, self.envs, self.env_options), self.previous, (self.seed, _TAUGHT))
        try:
            return ppo.train(self.model_, player, options or PPO(), self.seed, **run)
        finally:
            player.envs.close()

    # -- acting -----------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predict(
        self, observation: Any, state: AgentState | None = None, start: Any = None, reward: Any = None, greedy: bool = True
    ) -> tuple[np.ndarray, AgentState]:
        """Actions for the observations of n copies, and the state for the next call.

        Args:
            observation: (n, ...).
            state: what the call before gave; None: an episode begins in every copy.
            start: bool (n,): where an episode begins.
            reward: (n,): what came before the observation; for agents made with ``previous``.
            greedy: the likeliest action; else one is drawn.
        """
        observation = np.asarray(observation)
        n = len(observation)
        first = np.ones(n, bool) if state is None else np.zeros(n, bool) if start is None else np.asarray(start, bool)
        if state is None:
            state = AgentState(self.model_.backbone.init_state(n), torch.from_numpy(self.inputs_.nothing(n)))
        elif self.previous and reward is None:
            raise ValueError("this agent was made with previous=True: give it the rewards that came before the observations")
        x = self.inputs_(observation, state.action.numpy(), np.zeros(n) if reward is None else np.asarray(reward), first)
        policy, _, backbone = self.model_.step(x, state.backbone, torch.from_numpy(first))
        chosen = self.model_.likeliest(policy) if greedy else self.model_.sample(policy)
        return self.inputs_.actions(chosen.numpy()), AgentState(backbone, chosen)

    @torch.no_grad()
    def evaluate(self, episodes: int = 128, seed: int = 0, greedy: bool = True, chance: bool = False) -> np.ndarray:
        """Returns of episodes that were not learned from; with ``chance``, of actions drawn blindly."""
        n = min(episodes, _TOGETHER)
        rng, generator = np.random.default_rng([seed, _TEST]), torch.Generator().manual_seed(seed)
        player = Player(make(self.env, n, self.env_options), self.previous, (seed, _TEST))
        # Every copy plays its share: the first to end would be the short ones.
        share = np.full(n, episodes // n) + (np.arange(n) < episodes % n)
        totals: list[float] = []
        state = self.model_.backbone.init_state(n)
        while (playing := player.episodes < share).any():
            if chance:
                chosen = self.inputs_.actions.random(rng, n)
            else:
                policy, _, state = self.model_.step(player.x, state, torch.from_numpy(player.start))
                chosen = (self.model_.likeliest(policy) if greedy else self.model_.sample(policy, generator)).numpy()
            step = player.step(chosen)
            ended = np.flatnonzero(step.terminated | step.truncated)
            totals += [total for i, total in zip(ended, step.totals, strict=True) if playing[i]]
            state = trim(state) if len(ended) else state
        player.envs.close()
        return np.array(totals)

    # -- files ------------------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """A folder: agent.json and model.safetensors."""
        arguments = {**self.get_params(), "mixer": self.mixer.to_dict() if isinstance(self.mixer, Spec) else self.mixer}
        write_json(Path(path) / "agent.json", {"version": 1, "arguments": arguments})
        write_safetensors(Path(path) / "model.safetensors", self.model_.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Agent:
        """What :meth:`save` wrote."""
        path = Path(path)
        if not (path / "agent.json").is_file():
            raise ValueError(f"{path} holds no agent: it has no agent.json")
        arguments = read_json(path / "agent.json")["arguments"]
        if isinstance(arguments["mixer"], dict):
            arguments["mixer"] = Spec.from_dict(arguments["mixer"])
        self = cls(**arguments)
        self.model_.load_state_dict(read_safetensors(path / "model.safetensors")[0])
        return self
