"""Environments: the rules of the memory task, spaces as numbers, and a place found again by replaying."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

gymnasium = pytest.importorskip("gymnasium", reason="pip install 'statescan[rl]'")

from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete  # noqa: E402
from gymnasium.utils.env_checker import check_env  # noqa: E402

from statescan.data.environments import Actions, Observations, RepeatPrevious, RepeatPreviousVector, make  # noqa: E402
from statescan.data.player import Player  # noqa: E402


@pytest.mark.parametrize(("k", "decks"), [(1, 1), (4, 1), (32, 2)])
def test_one_copy_plays_by_the_rules(k: int, decks: int) -> None:
    env = gymnasium.make("statescan/RepeatPrevious-v0", k=k, decks=decks)
    seen = [env.reset(seed=5)[0]]
    rng, total, over, rewards = np.random.default_rng(0), 0.0, False, []
    while not over:
        right = seen[-k] if len(seen) >= k else None
        action = int(rng.integers(4)) if rng.random() < 0.3 or right is None else right
        shown, reward, over, cut, _ = env.step(action)
        expected = 0 if right is None else (1 if action == right else -1) / (52 * decks - k)
        assert reward == pytest.approx(expected)
        assert not cut
        seen.append(shown)
        rewards.append(reward)
        total += reward
    assert len(seen) == 52 * decks
    assert np.bincount(seen).tolist() == [13 * decks] * 4
    assert np.count_nonzero(rewards) == 52 * decks - k
    assert -1 < total < 1


def test_it_obeys_gymnasium_and_knows_a_perfect_player() -> None:
    check_env(RepeatPrevious(), skip_render_check=True)
    envs = make("statescan/RepeatPreviousMedium-v0", 3)
    assert isinstance(envs, RepeatPreviousVector)
    shown = [envs.reset(seed=[1, 2, 3])[0]]
    total = np.zeros(3)
    for t in range(103):
        observed, reward, over, _, _ = envs.step(shown[t - 31] if t >= 31 else np.zeros(3, int))
        shown.append(observed)
        total += reward
        assert over.all() == (t == 102)
    np.testing.assert_allclose(total, 1)
    with pytest.raises(gymnasium.error.ResetNeeded):
        envs.step(np.zeros(3, int))


def test_many_copies_are_as_many_single_ones() -> None:
    many, singles = make("statescan/RepeatPrevious-v0", 3), [RepeatPrevious() for _ in range(3)]
    observed = many.reset(seed=[7, 8, 9])[0]
    assert observed.tolist() == [env.reset(seed=seed)[0] for env, seed in zip(singles, (7, 8, 9), strict=True)]
    for t in range(80):
        actions = np.array([t % 4, 1, 3])
        got = many.step(actions)
        each = [env.step(int(action)) for env, action in zip(singles, actions, strict=True)]
        for have, want in zip(got[:4], zip(*[e[:4] for e in each], strict=True), strict=True):
            np.testing.assert_array_equal(have, want)
        if got[2].any():
            seeds = [t, None, t]
            observed = many.reset(seed=seeds, options={"reset_mask": got[2]})[0]
            assert observed.tolist() == [env.reset(seed=seed)[0] for env, seed in zip(singles, seeds, strict=True)]


def test_spaces_as_numbers() -> None:
    assert Observations(Discrete(3, start=2))(np.array([2, 4])).tolist() == [[1, 0, 0], [0, 0, 1]]
    assert Observations(MultiDiscrete([2, 3]))(np.array([[1, 2]])).tolist() == [[0, 1, 0, 0, 1]]
    assert Observations(MultiBinary(2))(np.array([[1, 0]])).tolist() == [[1, 0]]
    box = Observations(Box(np.array([[0.0, -np.inf]]), np.array([[10.0, np.inf]])))
    assert box(np.array([[[10.0, 7.0]], [[5.0, 0.5]]])).tolist() == [[1, 7], [0, 0.5]]
    assert Observations(Box(-3.4e38, 3.4e38, (1,)))(np.array([[2.0]])).tolist() == [[2.0]]
    with pytest.raises(ValueError, match="FlattenObservation"):
        Observations(Dict({"a": Discrete(2)}))
    assert Actions(Discrete(3, start=5))(np.array([0, 2])).tolist() == [5, 7]
    assert Actions(Discrete(3)).features(np.array([1])).tolist() == [[0, 1, 0]]
    force = Actions(Box(np.array([-2.0, 0.0]), np.array([2.0, 1.0])))
    assert force(np.array([[1.0, -1.0], [0.5, 9.0]])).tolist() == [[2, 0], [1, 1]]
    with pytest.raises(ValueError, match="must be Discrete or a Box"):
        Actions(MultiBinary(2))


@pytest.mark.parametrize(("name", "steps"), [("statescan/RepeatPrevious-v0", 70), ("CartPole-v1", 37), ("Pendulum-v1", 9)])
def test_a_place_is_found_again(name: str, steps: int) -> None:
    """Episodes of different lengths, one of which has just begun (the first copy's of CartPole falls early)."""
    rng = np.random.default_rng(0)

    def begun() -> Player:
        return Player(make(name, 3), True, (3, 1))

    def act(player: Player, n: int) -> None:
        for _ in range(n):
            player.step(player.inputs.actions.random(rng, 3))

    one = begun()
    act(one, steps)
    while name == "CartPole-v1" and not (one.start.any() and not one.start.all()):
        act(one, 1)
    other = begun()
    other.restore({key: value.clone() for key, value in one.saved().items()})
    for _ in range(60):
        assert torch.equal(one.x, other.x)
        for field in ("start", "episodes", "lengths", "totals"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field), field)
        assert all(torch.equal(a, b) for a, b in zip(one.saved().values(), other.saved().values(), strict=True))
        action = one.inputs.actions.random(rng, 3)
        one.step(action)
        other.step(action)


def test_where_episodes_end_and_begin() -> None:
    player = Player(make("CartPole-v1", 2, {"max_episode_steps": 6}), True, (0, 1))
    assert player.start.all()
    assert not player.x[:, 4:].any()
    for _ in range(5):
        step = player.step(np.array([0, 1]))
        assert not player.start.any()
    assert player.x[:, 4:6].tolist() == [[1, 0], [0, 1]]
    assert player.x[0, 6] == pytest.approx(np.log(2))
    before = player.x.clone()
    step = player.step(np.array([0, 1]))
    assert step.truncated.all()
    assert not step.terminated.any()
    assert step.totals == [6, 6]
    assert player.start.all()
    assert not torch.equal(step.last, player.x)
    assert not torch.equal(step.last, before)
    assert step.last[0, 4:6].tolist() == [1, 0]


def test_a_package_that_registers_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cards.py").write_text(
        "import gymnasium\ngymnasium.register('Cards-v3', entry_point='statescan.data.environments:RepeatPrevious', kwargs={'k': 2})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    envs = make("cards:Cards-v3", 2)
    first = envs.reset(seed=[1, 2])[0]
    second = envs.step(np.zeros(2, int))[0]
    assert envs.step(first)[1] == pytest.approx([1 / 50] * 2)
    assert second.shape == (2,)
    with pytest.raises(ImportError, match="No module named 'poker'"):
        make("poker:Cards-v3", 1)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'CartPole-v1'"):
        make("Cartpole-v1", 1)
    with pytest.raises(ValueError, match="did you mean 'statescan/RepeatPrevious-v0'"):
        make("RepeatPrevious-v0", 1)
    for name in ("statescan/RepeatPrevious-v0", "CartPole-v1"):
        with pytest.raises(ValueError, match="does not take"):
            make(name, 1, {"depth": 3})
    with pytest.raises(ValueError, match="k must lie between 1 and 51"):
        make("statescan/RepeatPrevious-v0", 1, {"k": 52})
