"""Weight-only quantisation: every plain Linear of a model keeps its weight in 8 or 4 bits, and a report says what that cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from statescan.data.corpus import encode_documents
from statescan.data.sources import read_documents
from statescan.interop.pretrained import from_pretrained, save_pretrained
from statescan.layers import QuantLinear
from statescan.layers.linear import has_hooks, is_plain
from statescan.layers.quantized import Bits
from statescan.procedures.evaluate import Evaluation, evaluate_corpus, patterns

Kind = Literal["int8", "int4"]
_BITS: dict[str, Bits] = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer: its relative error |W' - W| / |W| and the bytes of its weight."""

    name: str
    error: float
    bits_per_weight: float
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class QuantizationReport:
    """What :func:`quantize` replaced, and what it left and why. Prints as a table."""

    kind: str
    group_size: int
    layers: list[QuantizedLayer] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=0)
        lines = [f"{'layer':{width}}  error %  bits/weight   bytes before    bytes after"]
        lines += [
            f"{a.name:{width}}  {100 * a.error:7.3f}  {a.bits_per_weight:11.3f}  {a.bytes_before:13,}  {a.bytes_after:13,}"
            for a in self.layers
        ]
        before, after = sum(layer.bytes_before for layer in self.layers), sum(layer.bytes_after for layer in self.layers)
        lines.append(f"{self.kind}, groups of {self.group_size}: {len(self.layers)} layers, {before:,} bytes became {after:,}")
        return "\n".join(lines + [f"left as it is: {name}: {why}" for name, why in self.left.items()])


def quantize(model: nn.Module, kind: Kind, *, group_size: int | None = None, skip: Sequence[str] = ()) -> QuantizationReport:
    """Replace every plain ``nn.Linear`` inside a model, in place, by a :class:`~statescan.layers.QuantLinear`; nothing else changes.

    Left as they are: subclasses of ``nn.Linear`` (the step projection, whose precision matters and which is small), modules with hooks,
    parametrisations, a replaced forward or a tensor subclass as weight. A head tied to an embedding receives a quantised copy; the
    embedding stays.

    Args:
        model: any module; it is changed.
        kind: "int8" costs next to nothing; "int4" halves the bytes again and costs a few percent of perplexity.
        group_size: weights that share a scale, along the input: 64 (the default), 128 or 256.
        skip: patterns of module names to leave, such as ``"*.x_proj"``.
    """
    if kind not in _BITS:
        raise ValueError(f"kind must be 'int8' or 'int4'; got {kind!r}")
    if isinstance(model, nn.Linear):
        raise ValueError(f"a {type(model).__name__} alone cannot be replaced in place: quantise the module that holds it")
    report = QuantizationReport(kind, 64 if group_size is None else group_size)
    linears = [(path, m) for path, m in model.named_modules(remove_duplicate=False) if isinstance(m, nn.Linear)]
    places = Counter(id(linear) for _, linear in linears)
    for path, linear in linears:
        reason = next((f"skipped by {pattern!r}" for pattern in skip if fnmatch(path, pattern)), None) or _why_not(linear)
        if reason is None and places[id(linear)] > 1:
            reason = "is one module in several places"
        if reason is not None:
            report.left[path] = reason
            continue
        if not bool(torch.isfinite(linear.weight).all()):
            raise ValueError(f"the weight of {path} is not finite: the model is broken, or was not loaded")
        quantized = QuantLinear.from_linear(linear, _BITS[kind], report.group_size)
        report.layers.append(_measure(path, linear, quantized))
        model.set_submodule(path, quantized)
    if not report.layers:
        raise ValueError(f"{type(model).__name__} has no plain nn.Linear to quantise{'' if not report.left else f': {report.left}'}")
    return report


def _why_not(linear: nn.Linear) -> str | None:
    """Why a Linear is left, or None."""
    if isinstance(linear, QuantLinear):
        return f"is quantised already, to {linear.bits} bits"
    if is_parametrized(linear):
        return "is parametrised"
    if not is_plain(linear):
        return f"is a {type(linear).__name__}, not exactly nn.Linear"
    if has_hooks(linear):
        return "has hooks"
    if "forward" in linear.__dict__:
        return "its forward was replaced"
    if type(linear.weight) not in (Tensor, nn.Parameter):
        return f"its weight is a {type(linear.weight).__name__}"
    if linear.weight.is_meta:
        return "it has no values yet (meta device)"
    return None


def _measure(path: str, linear: nn.Linear, quantized: QuantLinear) -> QuantizedLayer:
    weight = linear.weight.detach().float()
    norm = float(weight.norm())
    error = float((quantized.dequantize() - weight).norm()) / norm if norm else 0.0
    after = sum(t.numel() * t.element_size() for t in (quantized.weight, quantized.scale))
    return QuantizedLayer(path, error, 8 * after / weight.numel(), linear.weight.numel() * linear.weight.element_size(), after)


@dataclass(frozen=True)
class QuantizedFolder:
    """What ``statescan quantize`` prints."""

    report: QuantizationReport
    folder: Path
    before: Evaluation | None = None
    after: Evaluation | None = None

    def __str__(self) -> str:
        lines = [str(self.report)]
        if self.before is not None and self.after is not None:
            growth = math.expm1(self.after.nats_per_token - self.before.nats_per_token)
            lines += [f"before: {self.before}", f"after:  {self.after}", f"perplexity of a token: {100 * growth:+.3f} %"]
        return "\n".join([*lines, f"written to {self.folder}"])


def quantize_folder(
    model: str,
    out: str,
    *,
    bits: Kind = "int4",
    group_size: int | None = None,
    skip: list[str] | str | None = None,
    data: list[str] | str | None = None,
    include: list[str] | str = "*",
    exclude: list[str] | str | None = None,
    separator: str | None = None,
    batch_size: int = 8,
    chunk: int = 512,
) -> QuantizedFolder:
    """Write a quantised copy of a model folder; with data, say what it costs on them.

    Args:
        model: a run folder, a model folder, or a hub id.
        out: the folder to write.
        bits: int8 or int4.
        group_size: weights that share a scale: 64, 128 or 256.
        skip: patterns of module names to leave, such as "*.x_proj".
        data: a text file, a folder, or a list of them, to measure perplexity on before and after.
        include: file name patterns taken from folders.
        exclude: patterns of files and folders to leave out.
        separator: what stands between documents inside a file; without it a file is one document.
        batch_size: documents read side by side.
        chunk: tokens read at a time; the state goes from chunk to chunk.
    """
    net = from_pretrained(model)
    corpus = None
    if data is not None:
        if net.tokenizer is None:
            raise ValueError(f"{model} has no tokenizer, so its perplexity on text cannot be measured: leave data out")
        corpus = encode_documents(read_documents(data, patterns(include), patterns(exclude), separator), net.tokenizer)
    before = None if corpus is None else evaluate_corpus(net, corpus, batch_size=batch_size, chunk=chunk)
    report = quantize(net, bits, group_size=group_size, skip=patterns(skip))
    after = None if corpus is None else evaluate_corpus(net, corpus, batch_size=batch_size, chunk=chunk)
    save_pretrained(net, out)
    return QuantizedFolder(report, Path(out), before, after)
