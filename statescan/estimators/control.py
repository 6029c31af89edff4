"""``statescan control``: an environment in; an agent that learned to act in it, beside one without memory and chance, out."""

from __future__ import annotations

import csv
import io
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statescan.estimators.pictures import figure
from statescan.files import replacing, write_json, write_text
from statescan.heads.actor_critic import PolicyNorm
from statescan.procedures.options import plain
from statescan.procedures.runs import RunFolder
from statescan.spec import Spec

_BLIND = "random actions"


@dataclass(frozen=True)
class Score:
    """How one agent did on episodes that it had not learned from."""

    agent: str
    seed: int
    greedy: float
    """Mean return of the likeliest actions."""
    drawn: float
    """Mean return of actions drawn from the policy."""
    parameters: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Controlled:
    """What a run left behind."""

    scores: tuple[Score, ...]
    episodes: int
    run: Path | None = None

    def __str__(self) -> str:
        kept = f"; curve.png, metrics.csv and the agents in {self.run}" if self.run else ""
        return f"{self.table()}\n\nmean returns of {self.episodes} episodes a seed{kept}"

    def table(self) -> str:
        """Markdown: a row an agent; with several seeds the mean and its standard error."""
        lines = ["| agent | parameters | seconds | return, likeliest action | return, action drawn |", "|---|--:|--:|--:|--:|"]
        for name in dict.fromkeys(score.agent for score in self.scores):
            rows = [score for score in self.scores if score.agent == name]
            seconds = statistics.mean(score.seconds for score in rows)
            greedy, drawn = (_with_error([getattr(score, kind) for score in rows]) for kind in ("greedy", "drawn"))
            lines.append(f"| {name} | {rows[0].parameters:,} | {seconds:.0f} | {'' if name == _BLIND else greedy} | {drawn} |")
        return "\n".join(lines)


def control(
    env: str,
    run: str = "runs/control",
    env_options: dict[str, Any] | None = None,
    mixer: Spec[Any] = Spec("S5"),
    d_model: int = 64,
    layers: int = 1,
    d_ff: int = 128,
    d_hidden: int = 64,
    norm: PolicyNorm = "rms",
    previous: bool = True,
    envs: int = 64,
    steps: int = 1_000_000,
    rollout: int = 128,
    epochs: int = 4,
    minibatches: int = 4,
    lr: float = 1e-3,
    gamma: float = 0.99,
    lam: float = 0.95,
    clip: float = 0.2,
    value_clip: float = 0.2,
    entropy: float = 0.01,
    save_every: int = 10,
    episodes: int = 128,
    floor: bool = True,
    seeds: int = 1,
    plot: bool = True,
    seed: int = 0,
    quiet: bool = False,
    resume: bool = False,
) -> Controlled:
    """Teach an agent with memory to act in an environment (PPO), and measure it beside one without memory and random actions.

    Args:
        env: id of a gymnasium environment, for example statescan/RepeatPrevious-v0; or the folder of an agent, to measure it once more.
        run: folder for all that comes out.
        env_options: arguments of the environment's constructor, for example '{"k": 8}'.
        mixer: what looks across time.
        d_model: width.
        layers: mixers.
        d_ff: width of the gated MLP behind each mixer; 0: none.
        d_hidden: width of the layers before and behind the backbone.
        norm: rms, layer or none.
        previous: the action and reward before an observation are inputs, too.
        envs: copies of the environment.
        steps: of all copies together.
        rollout: steps of each copy between updates.
        epochs: passes over a rollout.
        minibatches: of each pass; each holds whole copies.
        lr: learning rate at first; it falls to zero.
        gamma: discount.
        lam: of the advantage estimate.
        clip: of the ratio of probabilities.
        value_clip: of the values; 0 does not clip.
        entropy: weight of the entropy bonus.
        save_every: updates between checkpoints.
        episodes: to measure on.
        floor: teach an agent without memory, of as many parameters, too.
        seeds: how many agents of each kind, with the seeds from `seed` on.
        plot: draw curve.png.
        seed: of weights, episodes, actions and minibatches.
        quiet: no progress bar.
        resume: continue the run in this folder.
    """
    options = {name: value for name, value in locals().items() if name not in ("plot", "quiet")}
    from statescan.estimators.agent import Agent
    from statescan.procedures.ppo import PPO, Learned

    for name, value in (("seeds", seeds), ("episodes", episodes)):
        if value < 1:
            raise ValueError(f"{name} must be greater than 0; got {value}")
    if Path(env).is_dir():
        return Controlled((*_measure(env, agent := Agent.load(env), episodes, seed), _chance(agent, episodes, seed)), episodes)
    if minibatches > envs:
        raise ValueError(f"minibatches={minibatches} hold whole copies of the environment, and envs={envs}: ask for no more of them")
    ppo = PPO(
        steps=steps, rollout=rollout, epochs=epochs, minibatches=minibatches, lr=lr, gamma=gamma, lam=lam, clip=clip, value_clip=value_clip,
        entropy=entropy, save_every=save_every,
    )  # fmt: skip
    shape: dict[str, Any] = {
        "env": env, "env_options": env_options, "mixer": mixer, "d_model": d_model, "layers": layers, "d_ff": d_ff, "d_hidden": d_hidden,
        "norm": norm, "previous": previous, "envs": envs,
    }  # fmt: skip
    Agent(**shape)  # complains before anything is written
    where = Path(run)
    RunFolder(where, "control").open(plain(options), resume=resume, may_change=("run", "episodes"))
    say = (lambda line: None) if quiet else (lambda line: print(line, file=sys.stderr, flush=True))
    curves: dict[tuple[str, int], list[dict[str, Any]]] = {}
    scores: list[Score] = []
    for s in range(seed, seed + seeds):
        for name, memory in ((mixer.name, True), ("without memory", False))[: 1 + floor]:
            agent = Agent(**shape, seed=s, memory=memory)
            folder = RunFolder(where / "agents" / f"{name.replace(' ', '-')}-{s}", "control")

            def note(learned: Learned, name: str = name, s: int = s) -> None:
                curves[name, s] = learned.rows
                _write_metrics(where / "metrics.csv", curves)

            learned = agent.learn(
                ppo, folder=folder, quiet=quiet, name=f"{name}, seed {s}", on_save=note, resume_with=f"statescan control --resume {run}"
            )
            note(learned)
            agent.save(folder.path)
            if not scores:
                agent.save(where)  # the first one is the run's
            scores += _measure(name, agent, episodes, s, learned.seconds)
            say(f"{name}, seed {s}: return {scores[-1].greedy:.3f} after {learned.seconds:.0f} s")
        scores.append(_chance(agent, episodes, s))
    result = Controlled(tuple(scores), episodes, where)
    write_text(where / "table.md", result.table() + "\n")
    write_json(where / "scores.json", [vars(score) for score in scores])
    if plot:
        draw(curves, statistics.mean(score.drawn for score in scores if score.agent == _BLIND), env, where / "curve.png")
    return result


def _measure(name: str, agent: Any, episodes: int, seed: int, seconds: float = 0.0) -> tuple[Score]:
    greedy, drawn = (float(agent.evaluate(episodes, seed, kind).mean()) for kind in (True, False))
    return (Score(name, seed, greedy, drawn, sum(p.numel() for p in agent.model_.parameters()), seconds),)


def _chance(agent: Any, episodes: int, seed: int) -> Score:
    mean = float(agent.evaluate(episodes, seed, chance=True).mean())
    return Score(_BLIND, seed, mean, mean)


def _with_error(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"


def _write_metrics(path: Path, curves: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]) -> None:
    """A row an update of every agent so far; the return is empty where no episode ended."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, ((name, seed), rows) in enumerate(curves.items()):
        if not number:
            writer.writerow(["agent", "seed", *rows[0]])
        writer.writerows([name, seed, *(f"{v:.6g}" if isinstance(v, float) else v for v in row.values())] for row in rows)
    write_text(path, text.getvalue())


def draw(curves: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]], chance: float, title: str, path: Path) -> None:
    """Mean return of the episodes that ended in each update against steps: a line a seed, a colour an agent."""
    picture = figure(6.4, 4)
    axes = picture.add_subplot()
    names = list(dict.fromkeys(name for name, _ in curves))
    seen = set()
    for (name, _), rows in curves.items():
        points = [(row["steps"], row["return"]) for row in rows if row["return"] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), color=f"C{names.index(name)}", alpha=0.8, label=None if name in seen else name)
            seen.add(name)
    axes.axhline(chance, color="gray", linestyle="--", linewidth=1, label=_BLIND)
    axes.set(xlabel="steps of the environment", ylabel="return of an episode", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        picture.savefig(temporary, format="png", dpi=120)
