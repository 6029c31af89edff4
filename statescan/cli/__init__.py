"""The command ``statescan``: one file a verb, no logic here beyond finding it and saying plainly what went wrong."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

VERBS = {
    "demo": "train a small model on the standard library's source and let it speak (about five minutes)",
    "train": "train a model from a YAML file and options, or resume a run",
    "finetune": "go on training a model on examples: low-rank adapters or all of it, then merge and export",
    "classify": "sequences by class, beside simple classifiers",
    "regress": "numbers from sequences, one each or one a position, beside simple regressors",
    "forecast": "series ahead with bands, beside simple forecasts",
    "control": "an agent with memory for an environment, beside one without and random actions",
    "sound": "a model of recordings, sample by sample, beside simple predictions; and sounds that it makes",
    "stream": "a classifier, regressor or forecaster on values as they come, state kept between runs",
    "sweep": "search over the options of classify, regress, forecast or compare",
    "compare": "mixers side by side on a generated task, at equal parameters",
    "eval": "bits per byte of a model on text",
    "generate": "continue a prompt, of text or of sound",
    "quantize": "a copy of a model with its weights in 8 or 4 bits",
    "models": "list the models that can be created by name",
    "info": "parameters, state size, cost and configuration of a model",
    "check": "check a model: parity of its paths, or the laws",
    "doctor": "what works on this machine, and why the rest does not",
    "cite": "BibTeX of what a model uses",
}
"""Verb -> what it does. ``statescan.cli.<verb>`` holds a function ``run``, whose signature is the command line, and where it is needed
``rewrite(words) -> words`` for a shorthand and ``show(result)``."""

CONFIGURED = ("classify", "compare", "control", "demo", "eval", "finetune", "forecast", "regress", "sound", "train")
"""Verbs that read YAML files."""

_HELP = """usage: statescan VERB [options]

{verbs}

statescan VERB --help     the options of a verb, with types and defaults
statescan --version
STATESCAN_DEBUG=1         show the traceback of an error
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code: 0, 2 for a user's mistake (one line on stderr), 130 for Ctrl-C. A bug keeps its traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        _run(argv)
        sys.stdout.flush()
    except (ValueError, ImportError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output has left, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if os.environ.get("STATESCAN_DEBUG") or _is_bug(error):
            raise
        print("statescan:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\nstatescan: {stop}" if str(stop) else "", file=sys.stderr)
        return 130
    return 0


def _run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_HELP.format(verbs="\n".join(f"  {verb:10}{what}" for verb, what in VERBS.items())), end="")
        return
    if argv[0] in ("-V", "--version"):
        from statescan import __version__

        print(f"statescan {__version__}")
        return
    verb, *rest = argv
    if verb not in VERBS:
        from statescan.registry import nearest

        raise ValueError(f"there is no verb {verb!r}{nearest(verb, VERBS)}")
    from statescan.cli.arguments import parse

    module = importlib.import_module(f"statescan.cli.{verb}")
    if hasattr(module, "rewrite"):
        rest = module.rewrite(rest)
    try:
        arguments = parse(module.run, rest, f"statescan {verb}", files=verb in CONFIGURED)
    except SystemExit as stop:  # --help has been printed
        if stop.code:
            raise
        return
    result = module.run(**arguments)
    if hasattr(module, "show"):
        module.show(result)


def _is_bug(error: Exception) -> bool:
    """Something of our own that cannot be imported is our mistake, not the user's."""
    return isinstance(error, ImportError) and (error.name or "").startswith("statescan")
