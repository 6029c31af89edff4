"""The tensors of a checkpoint folder, however they are stored: one safetensors file, shards with an index, or a legacy .bin."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from statescan.files import read_json, read_safetensors

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_SUFFIX = ".index.json"


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder by name, on the CPU; safetensors are preferred to a .bin, which is only read as plain tensors."""
    for name in _SINGLE:
        if (folder / name).is_file():
            return _read_file(folder / name)
        if (folder / (name + _SUFFIX)).is_file():
            return _read_shards(folder / (name + _SUFFIX))
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise ValueError(
        f"{folder} holds no weights: expected one of {', '.join(n + end for n in _SINGLE for end in ('', _SUFFIX))}; found {found}"
    )


def check_finite(tensors: Mapping[str, Tensor], where: Path) -> None:
    """A checkpoint with a NaN or an infinity is broken: name the tensors."""
    # One pass: a sum is finite only if everything in it is. Where it is not, it may have overflowed, so look closely.
    suspects = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point() and not bool(tensor.sum().isfinite())}
    broken = [name for name, tensor in suspects.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        counts = int((~torch.isfinite(tensors[broken[0]])).sum())
        raise ValueError(
            f"{where}: not finite: {some(broken)} ({counts} of {tensors[broken[0]].numel()} values of the first): the checkpoint is broken"
        )


def check_match(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: Path) -> None:
    """Missing and surprising names and wrong shapes, all in one message."""
    missing = sorted(expected.keys() - tensors.keys())
    surprising = sorted(tensors.keys() - expected.keys())
    wrong = [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    faults = [
        f"{len(names)} {kind}: {some(names)}"
        for kind, names in (("missing", missing), ("surprising", surprising), ("of wrong shape", wrong))
        if names
    ]
    if faults:
        raise ValueError(f"{where} does not fit its config.json: {'; '.join(faults)}")
    odd = [
        f"{name} ({tensor.dtype})" for name, tensor in tensors.items() if tensor.is_floating_point() != expected[name].is_floating_point()
    ]
    if odd:
        raise ValueError(f"{where}: wrong kind of number in {some(odd)}: a quantised checkpoint cannot be read here")


def some(names: Iterable[str], limit: int = 4) -> str:
    """The first few of a list."""
    names = list(names)
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        # torch's own message advises to switch its protection off, so it is not repeated.
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is not a complete weight file of tensors only: it is damaged (copy it again), or "
            "holds other objects, which are not loaded for safety (convert it to safetensors)"
        ) from error
    if not isinstance(data, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in data.items()):
        raise ValueError(f"{path} is not a state dictionary (name -> tensor)")
    return data


def _read_shards(index: Path) -> dict[str, Tensor]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{index} has no weight_map (tensor name -> file name)")
    escaping = [file for file in table.values() if Path(file).name != file]
    if escaping:
        raise ValueError(f"{index} names files outside its folder: {some(escaping)}")
    missing = sorted({file for file in table.values() if not (index.parent / file).is_file()})
    if missing:
        raise ValueError(f"{index.parent} lacks {len(missing)} of {len(set(table.values()))} shards: {some(missing)}")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(table.values())):
        shard = _read_file(index.parent / file)
        listed = {name for name, home in table.items() if home == file}
        if shard.keys() != listed:
            raise ValueError(f"{index.parent / file} and {index.name} disagree about {some(sorted(shard.keys() ^ listed))}")
        tensors.update(shard)
    return tensors
