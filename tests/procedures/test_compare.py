"""Comparing mixers: equal counts, nothing run twice, an interrupt that loses one run only, and what is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from statescan.cli import main
from statescan.data.tasks import Delay, ListOps, Parity
from statescan.heads import LanguageModel
from statescan.procedures import compare as module
from statescan.procedures.compare import Comparison, build, compare, line_up, measure
from statescan.spec import Spec

TINY: dict[str, Any] = {
    "d_model": 16, "seeds": 2, "steps": 4, "batch_size": 4, "test_rows": 6, "eval_every": 2, "warmup": 2, "floor_rows": 0, "quiet": True,
}  # fmt: skip
TASK = Spec(Delay, length=12, delay=1, vocab_size=4)
GATED = {"name": "GatedDeltaNet", "allow_neg_eigval": True, "conv_size": 2}


def tiny(run: Path, mixers: list[Any], **options: Any) -> Comparison:
    return compare(TASK, mixers, str(run), **{**TINY, **options})


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Who is trained from now on."""
    runs: list[tuple[str, int]] = []
    train = module._train

    def noted(contestant: Any, seed: int, *rest: Any) -> Any:
        runs.append((contestant.label, seed))
        return train(contestant, seed, *rest)

    monkeypatch.setattr(module, "_train", noted)
    return runs


# -- who takes part -----------------------------------------------------------------------------------------------------------


def test_counts_are_equal_and_true():
    entries = ["Mamba", "Mamba2", GATED, ["Mamba", "Attention"], "RWKV7TimeMix"]
    found = line_up(entries, 100, 64, 4, 2)
    labels = ["Mamba", "Mamba2", "GatedDeltaNet(allow_neg_eigval=True, conv_size=2)", "Mamba+Attention", "RWKV7TimeMix"]
    assert [c.label for c in found] == labels
    largest = max(c.parameters for c in found)
    for contestant in found:
        model = build(contestant.mixers, 100, 64, 4, contestant.d_ff)
        assert sum(p.numel() for p in model.parameters()) == contestant.parameters
        assert abs(contestant.parameters / largest - 1) < 0.01
        assert model(torch.zeros(2, 5, dtype=torch.long)).shape == (2, 5, 100)
    hybrid = build(found[3].mixers, 100, 64, 4, 3)
    kinds = [type(layer.mixer).__name__ for layer in hybrid.backbone.layers]
    assert kinds == ["Mamba", "GatedMLP", "Attention", "GatedMLP"] * 2


def test_heads_fill_what_is_left_open():
    names = ["GatedDeltaNet", {"name": "GatedDeltaNet", "num_heads": 4}, {"name": "GatedDeltaNet", "num_heads": 4, "head_dim": 5}]
    found = [c.mixers[0].arguments for c in line_up(names, 10, 32, 1, 2)]
    assert [(a["num_heads"], a["head_dim"]) for a in found] == [(2, 16), (4, 8), (4, 5)]
    assert line_up(["Mamba2"], 10, 32, 1, 2)[0].mixers[0].arguments == {"headdim": 16}


def test_a_wanted_count_is_met_or_refused():
    (found,) = line_up(["Mamba"], 10, 16, 2, 2, parameters=20_000)
    assert abs(found.parameters - 20_000) <= 3 * 16 * 2 / 2
    with pytest.raises(ValueError, match="raise parameters"):
        line_up(["Mamba"], 10, 16, 2, 2, parameters=2000)
    with pytest.raises(ValueError, match="Mamba is listed twice"):
        line_up(["Mamba", {"name": "Mamba"}], 10, 16, 2, 2)


# -- scores -------------------------------------------------------------------------------------------------------------------


def test_measure_counts_all_rows_and_restores_the_mode():
    class Previous(torch.nn.Module):
        """Knows the answer: the token before (and, before the first, nothing)."""

        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(()))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return torch.nn.functional.one_hot(ids.roll(1, 1), 4).float()

    model = Previous()
    assert measure(model, {"a": Delay(12, 1, 4), "b": Delay(12, 0, 4)}, 37, 8)["a"] == 1.0
    assert measure(model, {"b": Delay(12, 0, 4)}, 300)["b"] == pytest.approx(1 / 4, abs=0.03)
    assert model.training


def test_a_run_learns_repeats_and_writes(tmp_path):
    options = {"steps": 60, "seeds": 1, "lr": 1e-2, "batch_size": 16, "eval_every": 20, "stop_at": 2}
    found = tiny(tmp_path / "a", ["Mamba"], **options)
    (score,) = found.scores
    assert score.accuracy["length 12"] > 0.9  # a tap of the convolution will do
    assert [step for step, _ in score.curve] == [20, 40, 60]
    assert score.curve[-1][1] == score.accuracy["length 12"]
    again = tiny(tmp_path / "b", ["Mamba"], **options).scores[0]
    assert again.curve == score.curve
    stopped = tiny(tmp_path / "c", ["Mamba"], **{**options, "stop_at": 0.5}).scores[0]
    assert stopped.steps < 60
    assert stopped.curve == score.curve[: len(stopped.curve)]
    saved = json.loads((tmp_path / "a" / "table.json").read_text())
    assert saved["task"] == {"name": "Delay", "length": 12, "delay": 1, "vocab_size": 4}
    assert saved["scores"][0]["accuracy"] == score.accuracy
    assert (tmp_path / "a" / "table.md").read_text() == found.table() + "\n"


def test_the_table_has_mean_and_deviation(tmp_path):
    def score(label: str, seed: int, value: float) -> module.Score:
        return module.Score(label, seed, 12345, 7, 10, 1.0, {"short": value, "long": 0.5}, [])

    scores = (score("A", 0, 0.9), score("A", 1, 1.0), score("B", 0, 0.25))
    found = Comparison(tmp_path, ("short", "long"), 0.5, scores, {"majority": {"short": 0.3, "long": 0.4}})
    assert found.table().splitlines() == [
        "| mixer | parameters | short | long |",
        "|---|--:|--:|--:|",
        "| A | 12,345 | 95.0 ± 7.1 | 50.0 ± 0.0 |",
        "| B | 12,345 | 25.0 | 50.0 |",
        "| majority | | 30.0 | 40.0 |",
    ]


def test_floors_are_fitted_once_and_stand_below(tmp_path, monkeypatch):
    found = tiny(tmp_path, ["LSTM"], seeds=1, floor_rows=64)
    assert [line.split("|")[1].strip() for line in found.table().splitlines()[2:]] == [
        "LSTM",
        "majority",
        "bag of tokens",
        "logistic",
        "MLP",
    ]
    monkeypatch.setattr(module, "floors", None)
    assert tiny(tmp_path, ["LSTM"], seeds=1, floor_rows=64) == found
    assert json.loads((tmp_path / "table.json").read_text())["floors"] == found.floors


def test_a_training_set_is_gone_through_in_epochs():
    source = module.Source(Delay(12, 1, 4), 10)
    seen = torch.cat([source.batch(5, 3, step).ids for step in range(2)])
    everything = source.all(3).ids
    assert sorted(seen.tolist()) == sorted(everything.tolist())
    assert not torch.equal(seen, torch.cat([source.batch(5, 3, step).ids for step in (2, 3)]))
    assert not torch.equal(source.all(4).ids, everything)


def test_pretraining_stands_beside_training_from_scratch(tmp_path):
    task = Spec(ListOps, min_length=4, max_length=9)
    options = {**TINY, "seeds": 1, "pretrain_steps": 2, "train_rows": 12}
    mixers = [{"name": "TwoSided", "mixer": {"name": "S4D", "d_state": 4}}, "LSTM"]
    found = compare(task, mixers, str(tmp_path), **options)
    name = "TwoSided(mixer=S4D(d_state=4))"
    assert [score.label for score in found.scores] == [name, f"{name}, pretrained", "LSTM", "LSTM, pretrained"]
    compare(task, mixers, str(tmp_path), **{**options, "pretrain_steps": 3})
    assert len(list((tmp_path / "scores").iterdir())) == 6  # those from scratch were there
    with pytest.raises(ValueError, match="a task with one class a row"):
        tiny(tmp_path, ["Mamba"], pretrain_steps=2, train_rows=8)
    with pytest.raises(ValueError, match="at least batch_size"):
        tiny(tmp_path, ["Mamba"], train_rows=2)


# -- going on -----------------------------------------------------------------------------------------------------------------


def test_what_is_finished_is_not_run_again(tmp_path, monkeypatch):
    runs = count_runs(monkeypatch)
    first = tiny(tmp_path, ["Mamba"])
    assert runs == [("Mamba", 0), ("Mamba", 1)]
    assert tiny(tmp_path, ["Mamba"]) == first
    assert len(runs) == 2
    # Another mixer and another seed are added; with d_ff fixed by `parameters`, what Mamba did still holds.
    parameters = first.scores[0].parameters
    both = tiny(tmp_path, ["Mamba", "S4D"], seeds=3, parameters=parameters)
    assert runs[2:] == [("Mamba", 2), ("S4D", 0), ("S4D", 1), ("S4D", 2)]
    assert both.scores[:2] == first.scores
    # Anything that decides a score is another run.
    for change in ({"steps": 5}, {"lr": 1e-3}, {"d_model": 32}, {"batch_size": 3}):
        before = len(runs)
        tiny(tmp_path, ["Mamba"], **change)
        assert len(runs) == before + 2
    compare(Spec(Delay, length=13, delay=1, vocab_size=4), ["Mamba"], str(tmp_path), **TINY)
    assert len(runs) == 2 + 4 + 8 + 2


def test_an_interrupt_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    runs = count_runs(monkeypatch)
    noted = module._train

    def interrupted(contestant: Any, seed: int, *rest: Any) -> Any:
        if seed == 1 and len(runs) == 1:
            runs.append(("stopped", 1))
            raise KeyboardInterrupt
        return noted(contestant, seed, *rest)

    monkeypatch.setattr(module, "_train", interrupted)
    words = ["compare", "delay", "--task.length=12", "--task.delay=1", "--task.vocab_size=4", "--mixers", "Mamba", f"--run={tmp_path}"]
    words += [f"--{key}={value}" for key, value in TINY.items()]
    assert main(words) == 130
    assert "1 of 2 are finished" in capsys.readouterr().err
    assert not (tmp_path / "table.md").exists()
    assert main(words) == 0
    assert runs == [("Mamba", 0), ("stopped", 1), ("Mamba", 1)]
    assert "| Mamba |" in capsys.readouterr().out


# -- the command --------------------------------------------------------------------------------------------------------------


def test_the_command_reads_mixers_tasks_and_files(tmp_path, capsys, monkeypatch):
    asked: list[dict[str, Any]] = []
    from statescan.cli import compare as verb

    monkeypatch.setattr(verb, "run", _noting(asked))
    neg = "{name: GatedDeltaNet, allow_neg_eigval: true}"
    assert main(["compare", "mqar", "--task.pairs=4", "--mixers", f"Mamba,{neg}, [Mamba, Attention]", "--run", str(tmp_path)]) == 0
    expected = ["Mamba", {"name": "GatedDeltaNet", "allow_neg_eigval": True}, ["Mamba", "Attention"]]
    assert asked[-1]["mixers"] == expected
    assert asked[-1]["task"] == Spec("MQAR", pairs=4)
    assert main(["compare", "--task=in_context-language", "--mixers=[[Mamba, Attention], [Mamba, S4D]]"]) == 0
    assert asked[-1]["mixers"] == [["Mamba", "Attention"], ["Mamba", "S4D"]]
    assert asked[-1]["task"] == Spec("InContextLanguage")
    assert main(["compare", "parity", "--mixers=[Mamba, Attention], [Mamba, S4D]"]) == 0
    assert asked[-1]["mixers"] == [["Mamba", "Attention"], ["Mamba", "S4D"]]
    config = tmp_path / "config.yaml"
    config.write_text(f"task: {{name: Parity, length: 8}}\nmixers: [Mamba, {neg}]\nsteps: 7\n")
    assert main(["compare", str(config), "--seeds=1"]) == 0
    assert (asked[-1]["steps"], asked[-1]["seeds"], asked[-1]["mixers"]) == (7, 1, expected[:2])
    assert asked[-1]["task"]() == Parity(length=8)


def _noting(asked: list[dict[str, Any]]) -> Any:
    import functools

    @functools.wraps(compare)
    def run(*args: Any, **options: Any) -> str:
        asked.append(options)
        return ""

    return run


def test_mistakes_are_one_line(tmp_path, capsys):
    def fails(*words: str) -> str:
        assert main(["compare", *words, f"--run={tmp_path}", "--quiet"]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        return captured.err

    assert "did you mean 'MQAR'" in fails("mqarr", "--mixers=Mamba")
    assert "did you mean 'Mamba2'" in fails("mqar", "--mixers=Mamba22")
    assert "no argument 'd_stat'; did you mean 'd_state'" in fails("mqar", "--mixers={name: Mamba, d_stat: 3}")
    assert "has no argument 'pair'" in fails("mqar", "--task.pair=3", "--mixers=Mamba")
    assert "4 * pairs" in fails("mqar", "--task.pairs=33", "--mixers=Mamba")
    assert "Mamba is not a task" in fails("--task=Mamba", "--mixers=Mamba")
    assert "steps must be greater than 0" in fails("mqar", "--mixers=Mamba", "--steps=0")
    assert "mixers is empty" in fails("mqar", "--mixers=[]")


def test_a_plot_is_drawn_or_its_absence_said(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    tiny(tmp_path / "with", ["Mamba"], seeds=1)
    assert (tmp_path / "with" / "plot.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    tiny(tmp_path / "without", ["Mamba"], seeds=1, quiet=False)
    assert "statescan[plots]" in (said := capsys.readouterr().err)
    assert "\r" not in said  # no bar where there is no terminal
    assert not (tmp_path / "without" / "plot.png").exists()


def test_a_loss_that_is_not_finite_names_who(tmp_path, monkeypatch):
    monkeypatch.setattr(LanguageModel, "loss", lambda self, logits, targets: logits.sum() * float("nan"))
    with pytest.raises(ValueError, match="Mamba, seed 0: the fit stopped at step 1: "):
        tiny(tmp_path, ["Mamba"])
