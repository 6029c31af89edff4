"""``statescan check``: does a model keep its promises?"""

from __future__ import annotations

from typing import Literal


def run(what: Literal["parity", "laws"], model: str) -> None:
    """Check a model, and say where it first goes wrong.

    Args:
        what: parity (whole == chunks == steps, for the whole model, then block by block) or laws (the contract, on every implementation)
        model: the name of a model, or a folder
    """
    from statescan.cli.inputs import find

    _, net = find(model)
    if what == "laws":
        from statescan.testing import check_model

        check_model(net)
        return
    from statescan.analysis.parity import parity

    print(parity(net))
