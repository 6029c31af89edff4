"""PPO: its pieces against plain loops, truncation against termination, and a run that goes on to the same bits."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

gymnasium = pytest.importorskip("gymnasium", reason="pip install 'statescan[rl]'")

from statescan.data.environments import make  # noqa: E402
from statescan.data.player import Player  # noqa: E402
from statescan.heads.actor_critic import ActorCritic  # noqa: E402
from statescan.procedures.guard import NonFiniteError  # noqa: E402
from statescan.procedures.interrupt import Interrupted  # noqa: E402
from statescan.procedures.ppo import PPO, Learned, Spread, advantages, play, policy_loss, train, value_loss  # noqa: E402
from statescan.procedures.runs import RunFolder  # noqa: E402
from statescan.protocols import CausalMixer  # noqa: E402
from statescan.registry import parts  # noqa: E402
from statescan.spec import Spec  # noqa: E402
from statescan.timeline import Timeline  # noqa: E402


def _player(name: str = "statescan/RepeatPrevious-v0", n: int = 4, **options: Any) -> Player:
    return Player(make(name, n, options), True, (0, 1))


def _model(player: Player, mixer: str = "S5", seed: int = 0, d_model: int = 8, **arguments: Any) -> ActorCritic:
    torch.manual_seed(seed)
    actions = player.inputs.actions
    return ActorCritic(player.inputs.width, actions.width, actions.continuous, d_model, "M", {"M": Spec(mixer, **arguments)}, d_hidden=16)


# -- the pieces ------------------------------------------------------------------------------------------------------------------


def test_advantages_are_the_sums_they_stand_for() -> None:
    rng = np.random.default_rng(0)
    reward, value, following = rng.standard_normal((3, 3, 11))
    terminated, truncated = rng.random((2, 3, 11)) < 0.15
    final = rng.standard_normal((3, 11))
    gamma, lam = 0.9, 0.7
    after = np.where(terminated, 0.0, np.where(truncated, final, following))
    ended = terminated | truncated
    got = advantages(*(torch.from_numpy(a) for a in (reward, value, after, ended)), gamma, lam)
    for i in range(3):
        for t in range(11):
            total, weight = 0.0, 1.0
            for s in range(t, 11):
                total += weight * (reward[i, s] + gamma * after[i, s] - value[i, s])
                weight *= gamma * lam
                if ended[i, s]:
                    break
            assert float(got[i, t]) == pytest.approx(total, abs=1e-12)


def test_losses_by_hand() -> None:
    rng = np.random.default_rng(1)
    new, old, advantage, target = rng.standard_normal((4, 50)) * 0.3
    expected = 0.0
    for i in range(50):
        ratio = np.exp(new[i] - old[i])
        expected -= min(ratio * advantage[i], min(max(ratio, 0.8), 1.2) * advantage[i]) / 50
    tensors = [torch.from_numpy(a) for a in (new, old, advantage)]
    assert float(policy_loss(*tensors, 0.2)) == pytest.approx(expected, abs=1e-12)
    for clip in (0.0, 0.2):
        expected = 0.0
        for i in range(50):
            error = (new[i] - target[i]) ** 2
            if clip:
                held = old[i] + min(max(new[i] - old[i], -clip), clip)
                error = max(error, (held - target[i]) ** 2)
            expected += 0.5 * error / 50
        assert float(value_loss(tensors[0], tensors[1], torch.from_numpy(target), clip)) == pytest.approx(expected, abs=1e-12)


def test_the_spread_of_returns() -> None:
    rng = np.random.default_rng(2)
    reward, ended = rng.standard_normal((2, 12)) * 5, rng.random((2, 12)) < 0.3
    seen = []
    for i in range(2):
        total = 0.0
        for t in range(12):
            total = 0.8 * total + reward[i, t]
            seen.append(total)
            total = 0.0 if ended[i, t] else total
    spread = Spread(2)
    for part in (slice(0, 5), slice(5, 12)):  # in two pieces: the sums go on
        scaled = spread.scaled(torch.from_numpy(reward[:, part]), torch.from_numpy(ended[:, part]), 0.8)
    np.testing.assert_allclose(scaled, reward[:, 5:] / np.std(seen), rtol=1e-12)
    nothing = torch.zeros(1, 3)
    assert torch.equal(Spread(1).scaled(nothing, nothing.bool(), 0.9), nothing)


# -- playing ---------------------------------------------------------------------------------------------------------------------


MIXERS = {
    name: {key: value for key, value in cls.examples[0].items() if key != "capacity"}
    for name, cls in sorted(parts.items())
    if issubclass(cls, CausalMixer) and not cls.space_ndim and cls.examples and cls.__module__.startswith("statescan.")
}
_EACH_TIME = ("S5", "Mamba", "GatedDeltaNet", "Attention", "LongConv")


@pytest.mark.parametrize("mixer", [pytest.param(name, marks=() if name in _EACH_TIME else pytest.mark.full) for name in MIXERS])
def test_what_was_played_is_what_is_learned_from(mixer: str) -> None:
    """Log probabilities and values of a rollout are those of one parallel pass over it, also in the second rollout, over episodes' ends."""
    player = _player()
    model = _model(player, mixer, d_model=16, **MIXERS[mixer]).eval()
    state = model.backbone.init_state(4)
    for number in range(2):
        rollout, state, _ = play(model, player, state, 30, torch.Generator().manual_seed(number))
        with torch.no_grad():
            policy, value = model(rollout.x, Timeline(reset=rollout.start), state=rollout.state)
            torch.testing.assert_close(model.log_prob(policy, rollout.action), rollout.log_prob, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(value, rollout.value, atol=1e-4, rtol=1e-4)
            rows = torch.tensor([2, 0])
            part = rollout.pick(rows)
            policy, value = model(part.x, Timeline(reset=part.start), state=part.state)
            torch.testing.assert_close(value, rollout.value[rows], atol=1e-4, rtol=1e-4)
    assert rollout.start.any(1).all()


def test_the_first_pass_finds_the_policy_that_acted() -> None:
    """Also where a layer drops out in training."""
    player = _player()
    model = _model(player, "LongConv", l_max=9)
    (row,) = train(model, player, PPO(steps=40, rollout=10, epochs=1, minibatches=1), 0, quiet=True).rows
    assert abs(row["kl"]) < 1e-9
    assert row["clipped"] == 0


def test_an_episode_that_is_cut_off_is_not_over() -> None:
    """CartPole, cut off after 6 steps: what follows counts by its value, in the state the copy had; a fall counts nothing."""
    player = _player("CartPole-v1", 2, max_episode_steps=6)
    model = _model(player, "S5", d_state=8)
    played, _, totals = play(model, player, model.backbone.init_state(2), 10, torch.Generator().manual_seed(0))
    assert totals == [6, 6]
    assert played.ended.nonzero().tolist() == [[0, 5], [1, 5]]
    again = _player("CartPole-v1", 2, max_episode_steps=6)
    for t in range(6):
        step = again.step(played.action[:, t].numpy())
    _, value = model(torch.cat([played.x[:, :6], step.last[:, None]], dim=1))
    torch.testing.assert_close(played.after[:, 5], value[:, 6], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(played.after[:, :5], played.value[:, 1:6])
    torch.testing.assert_close(played.after[:, 6:9], played.value[:, 7:])
    fallen = _player("CartPole-v1", 1)
    rollout, _, totals = play(model, fallen, model.backbone.init_state(1), 80, torch.Generator().manual_seed(1))
    assert totals
    assert (rollout.after == 0).nonzero().tolist() == rollout.ended.nonzero().tolist()


# -- the loop --------------------------------------------------------------------------------------------------------------------

SMALL = PPO(steps=5 * 4 * 30, rollout=30, epochs=2, minibatches=2, save_every=2)


def _run(
    folder: RunFolder | None, name: str = "statescan/RepeatPrevious-v0", stop_at: int | None = None
) -> tuple[dict[str, Tensor], Learned]:
    player = _player(name)
    model = _model(player, d_state=8)
    played, reset = 0, player.step

    def step(chosen: np.ndarray) -> Any:
        nonlocal played
        played += 1
        if played == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return reset(chosen)

    player.step = step  # type: ignore[method-assign]
    done = train(model, player, SMALL, 0, folder=folder, quiet=True, resume_with="again")
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, done


@pytest.mark.parametrize("name", ["statescan/RepeatPrevious-v0", "CartPole-v1"])
def test_stopped_and_continued_it_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    whole, done = _run(None, name)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(Interrupted, match="stopped after update 3 of 5; continue with: again"):
        _run(folder, name, stop_at=75)
    assert {p.suffix for p in folder.latest().iterdir()} == {".json", ".safetensors"}  # type: ignore[union-attr]
    rest, resumed = _run(folder, name)
    for key, tensor in whole.items():
        assert torch.equal(tensor, rest[key]), key
    assert [{**row, "seconds": 0} for row in resumed.rows] == [{**row, "seconds": 0} for row in done.rows]
    assert resumed.update == done.update == 5


def test_it_learns_what_needs_no_memory() -> None:
    """k = 1 asks for the card that is shown."""
    player = _player(n=32, k=1)
    model = _model(player, "S5", d_model=16, d_state=8)
    o = PPO(steps=10_000, rollout=26, epochs=4, minibatches=2, lr=6e-3, gamma=0.0)
    rows = train(model, player, o, 0, quiet=True).rows
    returns = [row["return"] for row in rows if row["return"] is not None]
    assert returns[0] < 0
    assert returns[-1] > 0.7
    assert rows[-1]["entropy"] < 0.7 < rows[0]["entropy"]


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="minibatches=9 hold whole copies"):
        train(_model(_player(), d_state=8), _player(), PPO(minibatches=9), 0)
    with pytest.raises(ValueError, match="gamma must lie between 0 and 1; got 2"):
        PPO(gamma=2)
    with pytest.raises(ValueError, match="rollout must be greater than 0"):
        PPO(rollout=0)
    player = _player()
    model = _model(player, d_state=8)
    torch.nn.init.constant_(model.critic[-1].bias, torch.nan)
    with pytest.raises(NonFiniteError, match=r"the parameter critic\.4\.bias is NaN"):
        train(model, player, PPO(steps=100, rollout=4), 0, quiet=True)
