"""Model folders: read ours, transformers' and the original project's; write ours; export to the other two.

Three kinds of folder, told apart by their config.json:

- ours: ``{"format": "statescan", "version": 1, "model": <Spec>, "tokenizer": "bytes" | "tokenizer.json" | null, ...}``, and, of a
  quantised model, ``"quantization": {module name: [bits, group size], ...}``;
- transformers': ``{"model_type": "mamba", "hidden_size": ..., ...}``, of a type in :data:`statescan.interop.dialects.DIALECTS`;
- the original project's: ``{"d_model": ..., "n_layer": ..., "ssm_cfg": {...}, ...}``.

Reading is strict: every tensor of the model must be there, in its shape and finite, and nothing else; an option that this library does not
know is refused, never ignored.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from statescan.data.tokenizers import load_tokenizer
from statescan.files import read_json, replacing, write_json, write_safetensors
from statescan.interop.config import plain_floats, tagged_floats
from statescan.interop.dialects import read_transformers, write_transformers
from statescan.interop.keys import Keys, Rename
from statescan.interop.original import read_original, write_original
from statescan.interop.weights import check_finite, check_match, read_weights, some
from statescan.layers import QuantLinear
from statescan.layers.linear import is_plain
from statescan.ops import pages
from statescan.parameters import Dynamic
from statescan.spec import Spec

VERSION = 1
MODEL_TYPE = "statescan"
"""What our config.json says to transformers' Auto classes (:mod:`statescan.interop.transformers_bridge`)."""

PathLike = str | os.PathLike[str]


def from_pretrained(path_or_hub_id: PathLike, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
    """The model of a folder, or of a repository on the Hugging Face hub, with its tokenizer as ``model.tokenizer`` if it has one.

    Weights keep the precision they are stored in unless ``dtype`` says otherwise; dynamics are never held below float32.
    """
    folder = _locate(path_or_hub_id)
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no config.json: it is not a model folder")
    config = plain_floats(read_json(file))
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold an object, not a {type(config).__name__}")
    spec, keys = _understand(config, str(file))
    tensors = keys.read(read_weights(folder))
    model = _assemble(spec, tensors, folder, (config.get("quantization") or {}) if config.get("format") == "statescan" else {})
    tokenizer = _read_tokenizer(folder, config, model)
    if tokenizer is not None:
        model.tokenizer = tokenizer
    if dtype is not None and torch.device(device or "cpu").type == "cpu":
        model._apply(lambda t: pages.resident(t, dtype) if t.is_floating_point() and t.dtype != dtype else t)
    return model.to(device=device, dtype=dtype).eval()


def save_pretrained(model: nn.Module, folder: PathLike, tokenizer: Any = None) -> None:
    """Write a folder of our kind: config.json (every argument of the model), model.safetensors and the tokenizer (default: the model's)."""
    folder = Path(folder)
    tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
    spec = Spec.of(model)
    config = {
        "format": "statescan",
        "version": VERSION,
        "model_type": MODEL_TYPE,
        "model": tagged_floats(spec.to_dict()),
        "tokenizer": None,
    }
    quantized = {name: [m.bits, m.group_size] for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, QuantLinear)}
    if quantized:
        config["quantization"] = quantized
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", _unshared(model), {"format": "pt"})
    config["tokenizer"] = _write_tokenizer(tokenizer, folder)
    config["eos_token_id"] = getattr(tokenizer, "eos_id", None)  # for the transformers bridge
    write_json(folder / "config.json", config)


def export_pretrained(
    model: Any,
    folder: PathLike,
    format: Literal["transformers", "mamba_ssm"] = "transformers",
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a folder that transformers, or the original project, reads.

    Tensors are written bit for bit as the model holds them, or in ``dtype``. A checkpoint that was stored in bfloat16 throughout comes back
    bit for bit with ``dtype=torch.bfloat16``: the model holds its dynamics in float32. What the target cannot express is a ValueError;
    arguments of initialisation that the target does not have are left out.
    """
    folder = Path(folder)
    if format not in ("transformers", "mamba_ssm"):
        raise ValueError(f"format must be 'transformers' or 'mamba_ssm'; got {format!r}")
    if any(isinstance(module, QuantLinear) for module in model.modules()):
        raise ValueError("a quantised model cannot be exported: neither format knows its weights; export the model it was made from")
    hub = format == "transformers"
    config, keys = write_transformers(model) if hub else (write_original(model), Keys([]))
    tensors = {name: tensor.detach().cpu().to(dtype) for name, tensor in _unshared(model).items()}
    folder.mkdir(parents=True, exist_ok=True)
    if hub:
        config["dtype"] = str(tensors["backbone.embedding.weight"].dtype).removeprefix("torch.")
        eos = getattr(model.tokenizer, "eos_id", None)
        config.update({} if eos is None else {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos})
        write_safetensors(folder / "model.safetensors", keys.write(tensors), {"format": "pt"})
    else:
        tied = {alias: tensors[name] for alias, name in _aliases(model).items()}  # its loader wants both names
        with replacing(folder / "pytorch_model.bin") as temporary:
            torch.save({**tensors, **tied}, temporary)
    _write_tokenizer(model.tokenizer, folder)
    write_json(folder / "config.json", tagged_floats(config))


def _locate(path_or_hub_id: PathLike) -> Path:
    """A local folder, or a downloaded snapshot of a hub repository."""
    folder = Path(path_or_hub_id)
    if folder.is_dir():
        return folder
    name = os.fspath(path_or_hub_id)
    if folder.exists():
        raise ValueError(f"{name} is a file: give the folder that holds it and config.json")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise ValueError(f"no such folder: {name} (and it is not the id of a hub repository, owner/name)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(f"no such folder: {name}; to download it from the hub: pip install 'statescan[hub]'") from error
    try:
        downloaded = Path(snapshot_download(name, allow_patterns=["*.json", "*.jinja", "*.safetensors"]))
        if not any(downloaded.glob("*.safetensors")):
            downloaded = Path(snapshot_download(name, allow_patterns=["*.json", "*.jinja", "pytorch_model*.bin"]))
    except (OSError, ValueError) as error:
        raise ValueError(f"no such folder: {name}; and it cannot be had from the hub: {error}") from error
    return downloaded


def _understand(config: Mapping[str, Any], where: str) -> tuple[Spec[Any], Keys]:
    """The Spec that a config.json of any kind describes, and how its tensor names become ours."""
    if config.get("format") == "statescan":
        if config.get("version") != VERSION:
            raise ValueError(f"{where} has version {config.get('version')!r}; this release reads version {VERSION}: upgrade statescan")
        try:
            spec = Spec.from_dict(config.get("model") or {}).resolved()
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        bridged = bool(config.get("architectures"))  # saved through the transformers bridge, whose model wraps ours as ``model``
        return spec, Keys([Rename(f"model.{name}", name) for name in ("backbone", "lm_head")] if bridged else [])
    if "model_type" in config:
        return read_transformers(config, where)
    if "d_model" in config and "n_layer" in config:
        return read_original(config, where), Keys([])
    raise ValueError(
        f"{where} is of no known kind: expected 'format' (ours), 'model_type' (transformers) or 'd_model' and 'n_layer' (mamba_ssm)"
    )


def _build(spec: Spec[Any], quantized: Mapping[str, Any]) -> Any:
    """A new model, with the Linear modules that were quantised as such."""
    model = spec()
    for name, how in quantized.items():
        linear = dict(model.named_modules()).get(name)
        if not is_plain(linear) or not isinstance(how, list) or len(how) != 2:
            raise ValueError(f"quantization names {name!r} with {how!r}; expected a Linear of the model with [bits, group size]")
        bits, group_size = how
        new = QuantLinear(linear.in_features, linear.out_features, linear.bias is not None, bits=bits, group_size=group_size)
        model.set_submodule(name, new)
    return model


def _assemble(spec: Spec[Any], tensors: dict[str, Tensor], where: Path, quantized: Mapping[str, Any]) -> Any:
    """Build without touching memory, check, and put the tensors in."""
    try:
        with _Unwritten():
            model = _build(spec, quantized)
    except (TypeError, ArithmeticError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{where / 'config.json'} describes no {spec.name} that can be built: {reason}") from error
    aliases = _aliases(model)
    for alias, name in aliases.items():
        if alias in tensors and name in tensors and not torch.equal(tensors[alias], tensors[name]):
            raise ValueError(f"{where}: {alias} and {name} are tied according to config.json, but differ")
        if name in tensors or alias in tensors:
            tensors[name] = tensors[alias] = tensors[name] if name in tensors else tensors[alias]
    expected = model.state_dict()
    check_match(tensors, expected, where)
    check_finite(tensors, where)
    stored = {name: expected[name].dtype for path in quantized for name in (f"{path}.weight", f"{path}.scale")}
    wrong = [f"{name} is {tensors[name].dtype}, expected {dtype}" for name, dtype in stored.items() if tensors[name].dtype != dtype]
    if wrong:
        raise ValueError(f"{where} does not fit its config.json: of wrong type: {some(wrong)}")
    dynamics = {
        f"{path}.{name}".lstrip(".") for path, child in model.named_modules() if isinstance(child, Dynamic) for name in child.dynamics
    }
    for name in dynamics & tensors.keys():
        if torch.finfo(tensors[name].dtype).bits < 32:
            tensors[name] = tensors[name].float()
    model.load_state_dict(tensors, assign=True)
    for alias, name in aliases.items():
        path, _, leaf = alias.rpartition(".")
        setattr(model.get_submodule(path), leaf, model.get_parameter(name))
    return model


class _Unwritten(TorchFunctionMode):
    """Parameters are allocated but not written to: memory that nobody touches costs nothing. (Arithmetic on the meta device would import
    torch's decompositions, a second and more.)
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        target = args[0] if args else kwargs.get("tensor")
        if name.endswith("_") and not name.endswith("__") and isinstance(target, nn.Parameter) and name != "requires_grad_":
            return target
        return func(*args, **kwargs)


def _aliases(model: nn.Module) -> dict[str, str]:
    """Second name -> first name of every parameter that has two."""
    first: dict[int, str] = {}
    return {
        name: first[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if first.setdefault(id(parameter), name) != name
    }


def _unshared(model: nn.Module) -> dict[str, Tensor]:
    """The state dictionary with every tied tensor once."""
    aliases = _aliases(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in aliases}


def _read_tokenizer(folder: Path, config: Mapping[str, Any], model: Any) -> Any:
    ours = config.get("format") == "statescan"
    kind = config.get("tokenizer") if ours else "tokenizer.json" if (folder / "tokenizer.json").is_file() else None
    if kind is None:
        return None
    if kind not in ("bytes", "tokenizer.json"):
        raise ValueError(f"{folder / 'config.json'}: tokenizer must be 'bytes', 'tokenizer.json' or null; got {kind!r}")
    try:
        tokenizer = load_tokenizer("bytes" if kind == "bytes" else folder / kind)
    except ImportError as error:
        if ours:
            raise
        warnings.warn(f"the model takes ids only: {error}", stacklevel=3)
        return None
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.vocab_size}: they do not belong together"
        )
    return tokenizer


def _write_tokenizer(tokenizer: Any, folder: Path) -> str | None:
    """Write the tokenizer's files, if it has any; what config.json says about it."""
    if tokenizer is None:
        return None
    tokenizer.save(folder)
    return tokenizer.name
