"""Rules of the house, as tests rather than prose."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import statescan  # noqa: F401 - registers what there is
from statescan.ops import dispatch
from statescan.protocols import CausalMixer, Mixer
from statescan.registry import create_model, models, parts
from statescan.spec import Spec

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "statescan"
FILES = sorted(path for folder in ("statescan", "tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))
HEAVY = (
    "transformers",
    "accelerate",
    "matplotlib",
    "peft",
    "tokenizers",
    "huggingface_hub",
    "datasets",
    "jsonargparse",
    "yaml",
    "triton",
    "timm",
)


def test_import_layers() -> None:
    pytest.importorskip("importlinter", reason="import-linter is a development tool: `make dev`")
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / ".importlinter"), no_cache=True) == 0


def test_importing_the_package_imports_no_extra() -> None:
    # torch itself may pull some of these in, where they are installed: only what statescan adds counts
    code = f"""
import sys, torch
before = set(sys.modules)
import statescan
print(sorted(set({HEAVY!r}) & (set(sys.modules) - before)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("collecting", [True, False])
def test_import_leaves_the_collector_alone(collecting: bool) -> None:
    code = f"import gc; gc.{'enable' if collecting else 'disable'}(); import statescan; print(gc.isenabled())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(collecting)


def test_files_stay_readable() -> None:
    long = {str(path.relative_to(ROOT)): lines for path in FILES if (lines := len(path.read_text().splitlines())) >= 600}
    assert not long


def test_every_op_has_its_parts() -> None:
    for name, op in dispatch.ops.items():
        folder = PACKAGE / "ops" / name
        if not folder.exists():
            continue  # an op of a test
        assert {"reference", "portable"} <= op.implementations.keys(), name
        assert {torch.float64, torch.float32} <= op.tolerance.keys(), name
        for file in ("__init__.py", "reference.py", "portable.py", "cases.py"):
            assert (folder / file).exists(), f"{name} has no {file}"
        assert "torch" in (folder / "reference.py").read_text()


def test_every_folder_of_ops_is_an_op() -> None:
    folders = {path.parent.name for path in (PACKAGE / "ops").glob("[!_]*/reference.py")}
    assert folders <= dispatch.ops.keys()


@pytest.mark.parametrize("name", sorted(models))
def test_every_recipe_is_cited(name: str) -> None:
    family = models[name].family
    assert family is not None, "a model without a family has no citation"
    assert family.bibtex.strip().startswith("@")
    assert family.url.startswith("https://")
    assert family.exact, "say what equals the publication"


@pytest.mark.parametrize("name", sorted(name for name, entry in models.items() if entry.parameters is not None))
def test_counts_are_the_published_ones(name: str) -> None:
    model = create_model(name, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == models[name].parameters


def test_every_published_size_has_a_count() -> None:
    assert [name for name, entry in models.items() if not entry.tiny and entry.parameters is None] == []


def test_models_define_no_mixer_and_no_op() -> None:
    for path in (PACKAGE / "models").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {base.id if isinstance(base, ast.Name) else getattr(base, "attr", "") for base in node.bases}
                assert not bases & {"Mixer", "CausalMixer", "Dynamic"}, f"{path.name} defines the mixer {node.name}"
            if isinstance(node, ast.Call):
                assert getattr(node.func, "id", "") != "Op", f"{path.name} defines an op"


@pytest.mark.parametrize("name", sorted(name for name, cls in parts.items() if issubclass(cls, Mixer)))
def test_mixers_are_where_mixers_live_and_save(name: str) -> None:
    cls = parts[name]
    assert cls.__module__.startswith("statescan.mixers."), cls.__module__
    assert cls.__doc__
    if issubclass(cls, CausalMixer):
        assert cls.scan is CausalMixer.scan, "scan is final"
    for arguments in cls.examples:
        spec = Spec(cls, **arguments)
        assert Spec.from_dict(spec.to_dict()) == spec


def test_nobody_swallows_arguments_or_exceptions() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{path.name}:{node.lineno}: a bare except"
