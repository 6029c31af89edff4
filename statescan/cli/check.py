"""``statescan check``: does a model keep its promises?"""

from __future__ import annotations

import sys
from typing import Literal


def run(what: Literal["parity", "laws"], model: str) -> None:
    """Check a model, and say where it first goes wrong; the exit code is 1 if it does.

    Args:
        what: parity (whole == chunks == steps, for the whole model, then block by block) or laws (the contract, on every implementation)
        model: the name of a model, or a folder
    """
    from statescan.cli.inputs import find

    entry, net = find(model)
    if what == "laws":
        from statescan.testing import check_model

        try:
            check_model(net if entry is None else model)
        except AssertionError:  # the report has been printed
            sys.exit(1)
        return
    from statescan.analysis import parity

    found = parity(net if entry is None else model)
    print(found)
    if not found.ok:
        sys.exit(1)
