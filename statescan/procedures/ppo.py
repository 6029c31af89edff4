"""Proximal policy optimisation of agents whose memory is a state.

Schulman et al., "Proximal Policy Optimization Algorithms", 2017, https://arxiv.org/abs/1707.06347. An update plays ``rollout`` steps in
every copy of the environment, then goes over them ``epochs`` times. A minibatch is some of the copies, with all their steps in order: it
is run in parallel from the state that each copy had when the rollout began, with a reset where an episode begins.

All that is random depends on the seed and the number of the update, so a run that was stopped goes on to the same bits.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from statescan import state as states
from statescan.backbones import FlatState
from statescan.data.player import Player
from statescan.files import read_safetensors, write_json, write_safetensors
from statescan.heads.actor_critic import ActorCritic
from statescan.procedures.checkpoint import averages, read_optimizer, read_weights_into, write_optimizer
from statescan.procedures.guard import NonFiniteError, first_non_finite
from statescan.procedures.interrupt import Interrupted, stop_politely
from statescan.procedures.optim import make_optimizer, set_rate
from statescan.procedures.runs import RunFolder, read_training_state
from statescan.timeline import Timeline

_ACT, _SHUFFLE = 1, 2
"""What a seed is for."""


@dataclass(frozen=True)
class PPO:
    """How to learn.

    Args:
        steps: of all copies of the environment together, rounded up to whole rollouts.
        rollout: steps of each copy between updates.
        epochs: passes over a rollout.
        minibatches: of each pass; each holds whole copies.
        lr: learning rate at first; it falls linearly to zero.
        gamma: discount.
        lam: of the generalised advantage estimate: 0 trusts the critic after one step, 1 the rewards alone.
        clip: how far the ratio of new to old probability may move from 1.
        value_clip: how far a value may move from the old one; 0 does not clip.
        entropy: weight of the entropy bonus.
        value: weight of the critic's loss.
        max_grad: largest norm of the gradient.
        scale_rewards: divide rewards by the spread of the discounted returns so far.
        save_every: updates between checkpoints.
    """

    steps: int = 1_000_000
    rollout: int = 128
    epochs: int = 4
    minibatches: int = 4
    lr: float = 1e-3
    gamma: float = 0.99
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5
    max_grad: float = 0.5
    scale_rewards: bool = True
    save_every: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "rollout", "epochs", "minibatches", "lr", "clip", "max_grad", "save_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0; got {getattr(self, name)}")
        for name in ("value_clip", "entropy", "value"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more; got {getattr(self, name)}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1; got {getattr(self, name)}")


# -- what is lowered -----------------------------------------------------------------------------------------------------------


def advantages(reward: Tensor, value: Tensor, after: Tensor, ended: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates (n, T) (Schulman et al. 2015, https://arxiv.org/abs/1506.02438)::

        delta_t = r_t + gamma after_t - v_t,   A_t = delta_t + gamma lam A_{t+1} within an episode

    ``after`` is the value of what an action led to: zero where the episode terminated, but not where it was merely cut off.
    """
    delta = reward + gamma * after - value
    result = torch.empty_like(delta)
    later = torch.zeros_like(delta[:, 0])
    for t in reversed(range(delta.shape[1])):
        later = delta[:, t] + gamma * lam * torch.where(ended[:, t], 0.0, later)
        result[:, t] = later
    return result


def policy_loss(log_prob: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """-mean min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A)."""
    ratio = (log_prob - old).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


def value_loss(value: Tensor, old: Tensor, target: Tensor, clip: float) -> Tensor:
    """Half the mean square error; with ``clip`` the larger of that and of the value held within ``clip`` of the old one."""
    error = (value - target).square()
    if clip:
        error = torch.maximum(error, (old + (value - old).clamp(-clip, clip) - target).square())
    return 0.5 * error.mean()


# -- playing -------------------------------------------------------------------------------------------------------------------


class Rollout(NamedTuple):
    """What n copies did in T steps, (n, T) each."""

    x: Tensor
    """(n, T, width)."""
    start: Tensor
    action: Tensor
    log_prob: Tensor
    value: Tensor
    reward: Tensor
    after: Tensor
    """The value of what each action led to; zero where the episode terminated."""
    ended: Tensor
    state: FlatState
    """Before the first step."""

    def pick(self, rows: Tensor) -> Rollout:
        """Some of the copies."""
        return states.select(self, rows)


class Spread:
    """How far discounted returns spread, over all that was played: what rewards are divided by, whatever their unit.

    ``tensors``: the discounted sum of rewards since each episode began, (n,); and how many of these were seen, their sum, and that of
    their squares, (3,).
    """

    def __init__(self, copies: int) -> None:
        self.tensors = {"discounted": torch.zeros(copies, dtype=torch.float64), "moments": torch.zeros(3, dtype=torch.float64)}

    def scaled(self, reward: Tensor, ended: Tensor, gamma: float) -> Tensor:
        """Rewards (n, T) that follow those before, in the new unit."""
        so_far, seen = self.tensors["discounted"], torch.empty(reward.shape, dtype=torch.float64)
        for t in range(reward.shape[1]):
            seen[:, t] = so_far = gamma * so_far + reward[:, t]
            so_far = torch.where(ended[:, t], 0.0, so_far)
        moments = self.tensors["moments"] + torch.stack([torch.tensor(seen.numel()), seen.sum(), seen.square().sum()])
        self.tensors = {"discounted": so_far, "moments": moments}
        mean, square = moments[1:] / moments[0]
        spread = float((square - mean.square()).clamp(min=0).sqrt())
        return reward / spread if spread > 1e-8 else reward


@torch.no_grad()
def play(model: ActorCritic, player: Player, state: FlatState, length: int, generator: torch.Generator) -> tuple[Rollout, FlatState, list]:
    """A rollout, the state behind it, and the returns of the episodes that ended."""
    rows: list[tuple[Tensor, ...]] = []
    before, totals = state, []
    for _ in range(length):
        x, start = player.x, torch.from_numpy(player.start)
        policy, value, state = model.step(x, state, start)
        action = model.sample(policy, generator)
        step = player.step(action.numpy())
        after = torch.zeros_like(value)
        cut = torch.from_numpy(step.truncated)
        if cut.any():
            _, seen, _ = model.step(step.last[cut], states.select(state, cut))
            after[cut] = seen
        ended = torch.from_numpy(step.terminated | step.truncated)
        reward = torch.from_numpy(step.reward).to(value.dtype)
        rows.append((x, start, action, model.log_prob(policy, action), value, reward, after, ended))
        totals += step.totals
    x, start, action, log_prob, value, reward, after, ended = (torch.stack(column, dim=1) for column in zip(*rows, strict=True))
    _, following, _ = model.step(player.x, state, torch.from_numpy(player.start))
    follow = torch.cat([value[:, 1:], following[:, None]], dim=1)
    after = torch.where(ended, after, follow)
    return Rollout(x, start, action, log_prob, value, reward, after, ended, before), states.trim(state), totals


def learn(model: ActorCritic, optimizer: torch.optim.Optimizer, rollout: Rollout, o: PPO, shuffle: np.random.Generator) -> dict[str, float]:
    """Go over a rollout: means of what was measured."""
    n = len(rollout.reward)
    advantage = advantages(rollout.reward, rollout.value, rollout.after, rollout.ended, o.gamma, o.lam)
    target = rollout.value + advantage
    sums: dict[str, float] = {}
    for _ in range(o.epochs):
        for rows in np.array_split(shuffle.permutation(n), o.minibatches):
            index = torch.from_numpy(rows)
            batch, gain = rollout.pick(index), advantage[index]
            gain = (gain - gain.mean()) / (gain.std(correction=0) + 1e-8)
            policy, value = model(batch.x, Timeline(reset=batch.start), state=batch.state)
            log_prob = model.log_prob(policy, batch.action)
            parts = {
                "policy_loss": policy_loss(log_prob, batch.log_prob, gain, o.clip),
                "value_loss": value_loss(value, batch.value, target[index], o.value_clip),
                "entropy": model.entropy(policy).mean(),
            }
            loss = parts["policy_loss"] + o.value * parts["value_loss"] - o.entropy * parts["entropy"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = clip_grad_norm_(model.parameters(), o.max_grad)
            if not math.isfinite(float(norm)) or not math.isfinite(float(loss.detach())):
                again = functools.partial(model, batch.x, Timeline(reset=batch.start), state=batch.state)
                raise NonFiniteError(f"learning stopped: {first_non_finite(model, again)}; a lower lr may help")
            optimizer.step()
            with torch.no_grad():
                change = log_prob - batch.log_prob
                parts["kl"] = (change.exp() - 1 - change).mean()
                parts["clipped"] = ((change.exp() - 1).abs() > o.clip).float().mean()
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + float(part.detach())
    return {name: total / (o.epochs * o.minibatches) for name, total in sums.items()}


# -- the loop ------------------------------------------------------------------------------------------------------------------


@dataclass
class Learned:
    """How it went."""

    update: int = 0
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One an update: steps so far, mean return and number of the episodes that ended in it, losses."""


def train(
    model: ActorCritic,
    player: Player,
    o: PPO,
    seed: int,
    *,
    folder: RunFolder | None = None,
    quiet: bool = False,
    name: str = "",
    on_save: Callable[[Learned], None] | None = None,
    resume_with: str = "",
) -> Learned:
    """Learn to act.

    Args:
        model: the agent; it learns in place, in eval mode.
        player: the environments, at the beginning of their first episodes.
        o: how.
        seed: of actions and minibatches.
        folder: where checkpoints go; one that is there already is continued.
        quiet: no progress bar.
        name: before the progress bar.
        on_save: called after each checkpoint.
        resume_with: the command that continues a stopped run, for its message.
    """
    if o.minibatches > player.n:
        raise ValueError(f"minibatches={o.minibatches} hold whole copies of the environment, and there are {player.n}")
    model.eval()  # dropout would make the policy that learns another than the one that acted
    optimizer = make_optimizer(model, o.lr, (0.9, 0.999), 0.0)
    done, state, spread = Learned(), model.backbone.init_state(player.n), Spread(player.n)
    latest = folder.latest() if folder else None
    if latest is not None:
        done, state = _restore(latest, model, optimizer, player, spread)
    updates = -(-o.steps // (player.n * o.rollout))
    begun = time.perf_counter() - done.seconds
    recent: list[float] = [row["return"] for row in done.rows if row["return"] is not None]
    hidden = quiet or not sys.stderr.isatty()
    with (
        tqdm(total=updates, initial=done.update, desc=name or None, unit="update", disable=hidden, leave=False) as bar,
        stop_politely() as asked_to_stop,
    ):
        while done.update < updates:
            set_rate(optimizer, 1 - done.update / updates)
            rollout, state, totals = play(model, player, state, o.rollout, _generator(seed, done.update))
            if o.scale_rewards:
                rollout = rollout._replace(reward=spread.scaled(rollout.reward, rollout.ended, o.gamma))
            measured = learn(model, optimizer, rollout, o, np.random.default_rng([seed, _SHUFFLE, done.update]))
            done.update += 1
            done.seconds = time.perf_counter() - begun
            mean = sum(totals) / len(totals) if totals else None
            steps = done.update * o.rollout * player.n
            done.rows.append({"steps": steps, "seconds": done.seconds, "return": mean, "episodes": len(totals), **measured})
            recent += [] if mean is None else [mean]
            bar.update()
            bar.set_postfix_str(f"return {recent[-1]:.3g}, {steps / done.seconds:,.0f} steps/s" if recent else "", refresh=False)
            stop, end = asked_to_stop(), done.update == updates
            if folder and (end or stop or done.update % o.save_every == 0):
                folder.write_checkpoint(done.update, functools.partial(_write, model, optimizer, player, spread, state, done), 1)
                if on_save:
                    on_save(done)
            if stop and not end:
                kept = f"; continue with: {resume_with}" if folder and resume_with else ""
                raise Interrupted(f"stopped after update {done.update} of {updates}{kept}")
    return done


def _generator(seed: int, update: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, _ACT, update]).generate_state(1)[0]))


def _write(
    model: ActorCritic, optimizer: torch.optim.Optimizer, player: Player, spread: Spread, state: FlatState, done: Learned, folder: Path
) -> None:
    write_safetensors(folder / "model.safetensors", model.state_dict())
    write_optimizer(folder / "optimizer.safetensors", averages(model, optimizer))
    states.save(state, folder / "state.safetensors")
    write_safetensors(folder / "player.safetensors", {**player.saved(), **spread.tensors})
    write_json(folder / "training.json", vars(done))


def _restore(
    folder: Path, model: ActorCritic, optimizer: torch.optim.Optimizer, player: Player, spread: Spread
) -> tuple[Learned, FlatState]:
    saved = read_training_state(folder)
    read_weights_into(model, folder / "model.safetensors")
    read_optimizer(folder / "optimizer.safetensors", model, optimizer)
    where = read_safetensors(folder / "player.safetensors")[0]
    player.restore(where)
    spread.tensors = {name: where[name] for name in spread.tensors}
    return Learned(**saved), states.load(folder / "state.safetensors")
