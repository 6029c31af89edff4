"""Agents: they act, they save, and the command leaves a run that can be continued and measured again."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from statescan.cli import main
from statescan.spec import Spec

pytest.importorskip("gymnasium", reason="pip install 'statescan[rl]'")

from statescan.data.environments import make
from statescan.estimators.agent import Agent

ENV = "statescan/RepeatPrevious-v0"


def _small(**changes: object) -> Agent:
    arguments = {"env": ENV, "mixer": Spec("S5", d_state=8), "d_model": 8, "d_ff": 8, "d_hidden": 8, "envs": 4, **changes}
    return Agent(**arguments)  # type: ignore[arg-type]


def test_asked_one_observation_at_a_time_it_does_as_measured(tmp_path: Path) -> None:
    agent = _small()
    torch.nn.init.normal_(agent.model_.actor[-1].weight)
    agent.save(tmp_path)
    loaded = Agent.load(tmp_path)
    assert {**loaded.get_params(), "mixer": 0} == {**agent.get_params(), "mixer": 0}
    returns = loaded.evaluate(3, seed=7)
    assert returns.shape == (3,)
    np.testing.assert_array_equal(returns, agent.evaluate(3, seed=7))
    assert not np.array_equal(returns, agent.evaluate(3, seed=8))
    envs = make(ENV, 3)
    seeds = [int(np.random.SeedSequence([7, 5, i, 0]).generate_state(1)[0]) for i in range(3)]
    observed, total = envs.reset(seed=seeds)[0], np.zeros(3)
    action, state = loaded.predict(observed)
    for _ in range(51):
        observed, reward, *_ = envs.step(action)
        total += reward
        action, state = loaded.predict(observed, state, reward=reward)
    np.testing.assert_allclose(total, returns, atol=1e-12)
    # an episode that begins in one copy is told apart from the others
    fresh, _ = loaded.predict(observed)
    mixed, after = loaded.predict(observed, state, np.array([True, False, False]), reward)
    assert fresh[0] == mixed[0]
    assert not after.action.shape[1:]
    with pytest.raises(ValueError, match="give it the rewards"):
        loaded.predict(observed, state)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_any_environment(name: str) -> None:
    """Boxes and counted observations, counted actions and boxes."""
    agent = _small(env=name, env_options={"max_episode_steps": 20}, envs=2)
    from statescan.procedures.ppo import PPO

    learned = agent.learn(PPO(steps=2 * 24 * 2, rollout=24, minibatches=2, epochs=1), quiet=True)
    assert [row["steps"] for row in learned.rows] == [48, 96]
    assert np.isfinite([row["value_loss"] for row in learned.rows]).all()
    returns = agent.evaluate(5)
    assert returns.shape == (5,)
    assert np.isfinite(returns).all()
    action, _ = agent.predict(make(name, 2).reset(seed=0)[0], greedy=False)
    assert make(name, 2).action_space.contains(action)


def test_the_agent_without_memory_is_as_large_and_forgets() -> None:
    agent, other = _small(), _small(memory=False)
    counts = [sum(p.numel() for p in a.model_.parameters()) for a in (agent, other)]
    assert abs(counts[0] - counts[1]) <= 1.5 * 8
    x = torch.randn(1, 5, agent.inputs_.width)
    torch.testing.assert_close(other.model_(x)[1][:, -1], other.model_(x[:, -1:])[1][:, 0])
    assert not torch.allclose(agent.model_(x)[1][:, -1], agent.model_(x[:, -1:])[1][:, 0])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    small = ["--mixer=S5", "--mixer.d_state=8", "--d_model=8", "--d_ff=8", "--d_hidden=8", "--envs=4", "--steps=150", "--rollout=20"]
    small += ["--env_options={max_episode_steps: 9}"]
    options = [*small, "--save_every=1", "--episodes=4", "--seeds=2", "--quiet=true", f"--run={run}"]
    assert main(["control", "CartPole-v1", *options]) == 0
    out = capsys.readouterr().out
    assert "| S5 |" in out
    assert "| without memory |" in out
    assert "±" in out
    assert "mean returns of 4 episodes a seed" in out
    assert {"agent.json", "model.safetensors", "metrics.csv", "curve.png", "table.md", "scores.json", "config.yaml"} <= {
        p.name for p in run.iterdir()
    }
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["agent"], row["seed"]) for row in rows] == [
        (name, seed) for seed in "01" for name in ("S5", "without memory") for _ in range(2)
    ]
    assert [int(row["steps"]) for row in rows[:2]] == [80, 160]

    # a run that has ended is continued to the same result
    scores = json.loads((run / "scores.json").read_text())
    assert main(["control", "--resume", str(run), "--quiet=true", "--plot=false"]) == 0
    assert [{**s, "seconds": 0} for s in json.loads((run / "scores.json").read_text())] == [{**s, "seconds": 0} for s in scores]
    capsys.readouterr()

    # its agent measured once more
    assert main(["control", str(run), "--episodes=4"]) == 0
    again = capsys.readouterr().out
    assert f"| {scores[0]['greedy']:.3f} | {scores[0]['drawn']:.3f} |" in again
    assert "random actions" in again

    for arguments, words in (
        (["control", "CartPole-v1", *options], "holds a run already: continue it with `statescan control --resume"),
        (["control", "CartPole-v9", f"--run={run}2"], "did you mean 'CartPole-v1'"),
        (["control", str(tmp_path), f"--run={run}2"], "holds no agent"),
        (["control", ENV, "--mixer=BidirectionalS5", f"--run={run}2"], "looks ahead"),
        (["control", ENV, "--env_options={depth: 3}", f"--run={run}2"], "does not take"),
        (["control", ENV, "--seeds=0", f"--run={run}2"], "seeds must be greater than 0"),
        (["control", ENV, *small, "--episodes=0", f"--run={run}2"], "episodes must be greater than 0; got 0"),
        (["control", str(run), "--episodes=0"], "episodes must be greater than 0; got 0"),
        (
            ["control", ENV, "--envs=4", "--minibatches=9", f"--run={run}2"],
            "minibatches=9 hold whole copies of the environment, and envs=4",
        ),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert not Path(f"{run}2").exists()


def test_without_gymnasium_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    for name in [n for n in sys.modules if n in ("statescan.data.environments", "statescan.data.player", "statescan.estimators.agent")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert main(["control", ENV]) == 2
    assert "pip install 'statescan[rl]'" in capsys.readouterr().err
