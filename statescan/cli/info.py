"""``statescan info``: what a model is and what it costs."""

from __future__ import annotations


def run(model: str) -> None:
    """Print parameters, state bytes per sequence, FLOPs per token and the full configuration of a model.

    Args:
        model: the name of a model, or a folder
    """
    import yaml

    from statescan import Spec
    from statescan.analysis import cost
    from statescan.cli.inputs import find
    from statescan.cli.report import facts

    entry, net = find(model, build=False)
    costs = cost(net)
    rows = [
        ("parameters", f"{costs.parameters:,} ({costs.parameter_bytes / 2**20:,.1f} MiB)"),
        ("state", "none" if costs.state_bytes is None else f"{costs.state_bytes:,} bytes per sequence"),
        ("forward pass", f"{costs.flops:,} FLOPs for {costs.per}"),
    ]
    if entry is not None and entry.family is not None:
        rows.append(("paper", f"{entry.family.title}, {entry.family.url}"))
    print(facts(rows))
    print("\n" + yaml.safe_dump(Spec.of(net).to_dict(), sort_keys=False, allow_unicode=True), end="")
