"""``statescan doctor``: what works on this machine, and why the rest does not."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any


def run() -> None:
    """Print versions, devices, the implementations of every op, and the extras."""
    import torch

    import statescan
    from statescan.cli.report import facts

    print(
        facts(
            [
                ("statescan", f"{statescan.__version__} in {Path(statescan.__file__).parent}"),
                ("python", f"{platform.python_version()} on {platform.platform()}"),
                ("torch", torch.__version__),
                ("threads", f"{torch.get_num_threads()} (torch.set_num_threads, or OMP_NUM_THREADS)"),
                ("cpu", f"{platform.machine()}, torch uses {torch.backends.cpu.get_cpu_capability()}"),
                ("gpu", _gpu()),
                ("kernels", _kernels()),
            ]
        )
    )
    print("\nImplementations, fastest first (the first that is not refused runs):")
    print(_implementations())
    print("\nExtras:")
    print(facts([(name, _extra(name, needs)) for name, needs in _extras().items()]))


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return "none" if torch.version.cuda is None else f"none that torch (built for CUDA {torch.version.cuda}) can use"


def _kernels() -> str:
    from statescan.ops import native_gate

    if native_gate.unavailable is not None:
        return native_gate.unavailable
    threads = f"threads by {native_gate.openmp}" if native_gate.openmp else "on one thread: no OpenMP runtime was found"
    return f"compiled, {native_gate.instruction_set()} (STATESCAN_CPU forces another), {threads}"


def _implementations() -> str:
    """Run every op on a small example in each dtype, and read from the dispatcher what it chose and why."""
    import torch

    from statescan.cli.report import table
    from statescan.ops.dispatch import explain

    rows: list[tuple[str, str, str]] = []
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        for call in _examples(device):
            call()
            choice = explain(1)[0]
            rows.append((choice.op if device == "cpu" else f"{choice.op} ({device})", "runs", choice.ran))
            rows += [("", name, f"refused: {reason}") for name, reason in choice.refused.items()]
    return table(("op", "", ""), rows)


def _examples(device: str) -> list[Any]:
    """A small call of every op."""
    import torch

    from statescan import ops

    def normal(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, device=device)

    x, B = normal(1, 4, 8), normal(1, 4, 16)
    return [
        lambda: ops.causal_conv1d(x, normal(8, 4)),
        lambda: ops.selective_scan(x, x, normal(8, 16) - 1, B, B),
        lambda: ops.ssd(normal(1, 4, 2, 8), normal(1, 4, 2), normal(2) - 1, B, B),
        lambda: ops.diagonal_scan(x, x),
    ]


def _extras() -> dict[str, list[str]]:
    """Extra -> names of its packages, as the installed package declares them."""
    try:
        needs = metadata.requires("statescan") or []
    except metadata.PackageNotFoundError:
        return {"unknown": []}
    extras: dict[str, list[str]] = {}
    for need in needs:
        match = re.match(r"""([\w.-]+).*;.*extra\s*==\s*['"](\w+)['"]""", need)
        if match:
            extras.setdefault(match[2], []).append(match[1])
    return extras


def _extra(name: str, needs: list[str]) -> str:
    """Versions of an extra's packages, or what to install."""
    if not needs:
        return "statescan runs from its source without being installed: pip install -e . to see"
    found: dict[str, str | None] = {}
    for package in needs:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    present = ", ".join(f"{package} {version}" for package, version in found.items() if version)
    absent = ", ".join(package for package, version in found.items() if not version)
    return "; ".join(filter(None, [present, absent and f"without {absent}: pip install 'statescan[{name}]'"]))
