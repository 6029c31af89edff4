"""``statescan sweep VERB``: search over the options of a command."""

from __future__ import annotations

import importlib
import json
from typing import Any, Literal

from statescan.cli.arguments import parse
from statescan.estimators.sweep import Range, Swept, read_range, sweep

__all__ = ["rewrite", "run", "show"]

show = print

_OWN = ("over", "trials", "seeds", "run", "quiet")


def run(
    verb: Literal["classify", "regress", "forecast", "compare"],
    over: list[str],
    words: list[str] | None = None,
    trials: int | None = None,
    seeds: int = 1,
    run: str = "runs/sweep",
    quiet: bool = False,
) -> Swept:
    """Search over the options of a command: statescan sweep VERB [options of the verb] --over lr=1e-4..1e-2:log --over d_model=32,64

    Settings are ranked by the loss on the validation part, of compare by wrong answers; the test part is looked at for the best alone. The
    same command, after Ctrl-C or with more trials or seeds, only does what is missing.

    Args:
        verb: whose options they are.
        over: what to search, one a --over: NAME=VALUE,VALUE or NAME=LOW..HIGH, with :log behind it for evenly spread logarithms; NAME may
            lie inside a part, as mixer.d_state.
        words: the other options of the verb; they may stand by themselves.
        trials: settings that are tried; by default all combinations of values, or 20 where there is a range.
        seeds: runs of each setting; the table shows the mean and its standard error.
        run: folder for the study, the runs, table.md and plot.png.
        quiet: do not say how each setting did.
    """
    module = importlib.import_module(f"statescan.cli.{verb}")

    def arguments(more: list[str]) -> dict[str, Any]:
        return parse(module.run, module.rewrite(more), f"statescan {verb}", files=True)

    words = words or []
    for text in over:  # what is not an option, or not a value of it, shows before anything runs
        name, values = read_range(text)
        for value in values.ends() if isinstance(values, Range) else values:
            arguments([*words, f"--{name}={value}"])
    return sweep(verb, lambda more: module.run(**arguments(more)), words, over, trials, seeds, run, quiet)


def rewrite(argv: list[str]) -> list[str]:
    """What is not an option of the sweep is one of the verb."""
    if not argv or argv[0].startswith("-"):
        return argv
    verb, *rest = argv
    own: list[str] = []
    words: list[str] = []
    over: list[str] = []
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if word in ("-h", "--help"):
            return [word]
        if not word.startswith("--") or name not in _OWN:
            words.append(word)
            continue
        if not equals:
            if name == "quiet" and not (rest and rest[0].lower() in ("true", "false")):
                value = "true"
            elif not rest:
                raise ValueError(f"--{name} needs a value: --{name}=VALUE")
            else:
                value = rest.pop(0)
        if name == "over":
            over.append(value)
        else:
            own.append(f"--{name}={value}")
    return [verb, json.dumps(over), f"--words={json.dumps(words)}", *own]
