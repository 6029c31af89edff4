"""No kernel touches memory that is not its own: guard pages, and the sanitizers of the compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from statescan.ops import native_gate as gate

needs_kernels = pytest.mark.skipif(gate.module is None, reason=str(gate.unavailable))
HERE = Path(__file__).parent
NATIVE = HERE.parent.parent / "native"
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma", "-mprefer-vector-width=512"]
FLAGS = {"baseline": [], "avx2": ["-mavx2", "-mfma"], "avx512": AVX512}


@needs_kernels
@pytest.mark.native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects pages by Linux's calls")
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_guard_pages_at_both_ends(isa: str) -> None:
    """Inputs, outputs and temporaries end at a page that must not be touched, and then begin behind one."""
    assert gate.module is not None
    if not gate.module.supports(isa):
        pytest.skip(f"this processor has no {isa}")
    environment = {**os.environ, "STATESCAN_CPU": isa}
    done = subprocess.run(
        [sys.executable, "guard_pages.py"], cwd=HERE, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"ended with {done.returncode}\n{done.stderr}"
    assert done.stdout.split() == ["untouched", isa]


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.skipif(sys.platform != "linux", reason="the flags are those of Linux")
@pytest.mark.parametrize("isa", FLAGS)
def test_kernels_are_clean_under_the_sanitizers(isa: str, tmp_path: Path) -> None:
    """The driver over odd sizes, built with the address and undefined-behaviour sanitizers."""
    if isa != "baseline" and not (gate.module is not None and gate.module.supports(isa)):
        pytest.skip(f"this processor has no {isa}")
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    flags = ["-std=gnu++17", "-g1", "-O1", "-w", *sanitizers, *FLAGS[isa], f"-DSTATESCAN_ISA={isa}", f"-I{NATIVE}"]
    sources = [p for p in sorted(NATIVE.glob("*.cpp")) if p.name not in ("module.cpp", "parallel.cpp")] + [NATIVE / "check" / "check.cpp"]

    def build(source: Path) -> Path:
        target = tmp_path / f"{source.stem}.o"
        subprocess.run(["g++", *flags, "-c", str(source), "-o", str(target)], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(build, sources))
    driver = tmp_path / "check"
    subprocess.run(["g++", *sanitizers, *map(str, objects), "-o", str(driver), "-pthread"], check=True)
    done = subprocess.run([str(driver)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["clean"]
