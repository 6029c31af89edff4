"""A verb's command line from its signature: jsonargparse for typed options and help; Specs for the parts of a model.

See docs/decisions/0001-specs-on-the-command-line.md for why Specs are handled beside jsonargparse and not through it.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml
from jsonargparse import ArgumentParser

from statescan import registry
from statescan.spec import Spec, check, describe, is_factory

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


class Parser(ArgumentParser):
    """A parser whose errors are ValueErrors."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(message) from ex


def build(verb: Callable[..., Any], prog: str, *, files: bool = False) -> Parser:
    """The parser of a verb: required arguments by position (as options where ``files`` may give them), Specs as text."""
    parser = Parser(prog=prog, description=inspect.cleandoc(verb.__doc__ or "").partition("\nArgs:")[0].strip())
    specs = _specs(verb)
    if files:
        parser.add_argument("--config", metavar="FILE.yaml", help="Options from a YAML file; the name alone will do, and later files win.")
    parser.add_function_arguments(verb, as_group=False, as_positional=not files, skip=set(specs))
    for name in specs:
        default = inspect.signature(verb).parameters[name].default
        default = "required" if default is inspect.Parameter.empty else f"default: {default}"
        parser.add_argument(
            f"--{name}", metavar="MODEL", help=f"name of a model or part; --{name}.OPTION=VALUE changes it inside ({default})"
        )
    return parser


def parse(verb: Callable[..., Any], argv: Sequence[str], prog: str, *, files: bool = False) -> dict[str, Any]:
    """The arguments of ``verb``: its defaults, under YAML files (with ``files``), under the command line.

    ``--key value`` and ``--key=value``; with ``files`` also ``key=value`` and a name that ends in .yaml.
    A Spec is the name of a model or part, or a mapping in a file; ``--model.parts.M.d_state=32`` changes it inside. Required arguments may
    be given by position; so may optional ones that stand before the ``*`` of a signature.
    """
    hints, specs = typing.get_type_hints(verb), _specs(verb)
    parameters = inspect.signature(verb).parameters
    words, inside, configs = _sort(verb, argv, parser := build(verb, prog, files=files), hints, specs, files)
    words, texts = _set_texts_aside(words, hints)
    if files and not {"-h", "--help"} & set(words):
        for action in parser._actions:  # files may give them: we look ourselves, below
            action.required = False
    try:
        given = {k: v for k, v in parser.parse_args(words, defaults=False).as_dict().items() if k in parameters}
    except ValueError as error:
        raise ValueError(_readable(str(error), hints)) from error
    values = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    for file in configs:
        for key, value in read_config(file).items():
            if key not in parameters:
                raise ValueError(f"{file}: {prog} has no option {key!r}{registry.nearest(key, parameters)}")
            values[key] = as_spec(value, key) if key in specs and value is not None else check(value, hints[key], f"{file}: {key}")
    values |= {key: as_spec(value, key) if key in specs else value for key, value in given.items()} | texts
    missing = [name for name in parameters if name not in values]
    if missing:
        raise ValueError(f"{prog} needs {', '.join(missing)}: see {prog} --help")
    for name, changes in inside.items():
        if changes:
            values[name] = (as_spec(values[name], name)).override(changes)
    return values


def as_spec(value: Any, where: str) -> Spec[Any]:
    """A Spec from the name of a model or part, a mapping with a name, or itself."""
    if isinstance(value, str) and value in registry.models:
        return registry.models[value].spec
    if isinstance(value, str):
        if value not in registry.parts:
            raise ValueError(
                f"{where}: there is no model or part named {value!r}{registry.nearest(value, [*registry.models, *registry.parts])}"
            )
        return Spec(value)
    if isinstance(value, Mapping) and value.get("name") in registry.models:
        return registry.models[value["name"]].spec.override({k: v for k, v in value.items() if k != "name"})
    if isinstance(value, (Spec, Mapping)):
        return value if isinstance(value, Spec) else Spec.from_dict(value)
    raise ValueError(f"{where} must be the name of a model or part, or a mapping {{name: ..., arguments}}; got {value!r}")


def read_config(file: str | Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    try:
        data = yaml.load(Path(file).read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise ValueError(f"no such file: {file}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ValueError(
            f"{file} must hold a mapping of options, for example 'steps: 1000'; got {'nothing' if data is None else type(data).__name__}"
        )
    return data


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as everywhere else."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"^{_NUMBER.pattern}$"), list("-+0123456789."))


def _value(text: str) -> Any:
    """A word of the command line as YAML reads it; what is not YAML is text."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def _specs(verb: Callable[..., Any]) -> list[str]:
    return [name for name, hint in typing.get_type_hints(verb).items() if name != "return" and is_factory(hint)]


def _sort(
    verb: Callable[..., Any], argv: Sequence[str], parser: Parser, hints: Mapping[str, Any], specs: Sequence[str], files: bool
) -> tuple[list[str], dict[str, dict[str, Any]], list[str]]:
    """Words for the parser, changes inside Specs (Spec -> path -> value), and configuration files."""
    parameters = inspect.signature(verb).parameters.values()
    marked = any(p.kind is p.KEYWORD_ONLY for p in parameters)
    order = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and (marked or p.default is p.empty)]
    known = [option.removeprefix("--") for option in parser._option_string_actions if option.startswith("--")]
    words: list[str] = []
    inside: dict[str, dict[str, Any]] = {name: {} for name in specs}
    configs: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            words += ["--", *rest]
            break
        key, equals, value = word.removeprefix("--").partition("=")
        head, dot, path = key.partition(".")
        option = (word.startswith("-") and word != "-") or (files and equals and head in known)
        if not option:
            if files and word.endswith((".yaml", ".yml")):
                configs.append(word)
            elif not order:
                raise ValueError(f"{parser.prog} cannot use {word!r}: see {parser.prog} --help")
            else:
                parameter = order.pop(0)
                words.append(word if parameter.default is parameter.empty and not files else f"--{parameter.name}={word}")
            continue
        if word != "-h" and key not in known and not (dot and head in known):
            raise ValueError(f"{parser.prog} has no option --{key}{registry.nearest(key, known)}")
        if word in ("-h", "--help"):
            words.append(word)
            continue
        if not equals and hints.get(key) is bool and not (rest and rest[0].lower() in ("true", "false")):
            value = "true"  # a switch
        elif not equals:
            if not rest:
                raise ValueError(f"--{key} needs a value: --{key}=VALUE")
            value = rest.pop(0)
        if head in specs and dot:
            inside[head][path] = _value(value)
        elif key == "config":
            configs.append(value)
        else:
            words.append(f"--{key}={value}")
    return words, inside, configs


def _set_texts_aside(words: list[str], hints: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Texts that YAML reads as nothing (``#include``, ``~``), where a text may stand: jsonargparse would make them None."""
    texts: dict[str, str] = {}
    rest = []
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        takes_text = str in get_args(hints.get(key))
        if word.startswith("--") and equals and takes_text and value != "null" and _value(value) is None:
            texts[key] = value
        else:
            texts.pop(key, None)  # a later word wins
            rest.append(word)
    return rest, texts


def _readable(message: str, hints: Mapping[str, Any]) -> str:
    """jsonargparse's report on a value, in our words."""
    key = re.search(r'[Pp]arser key "(\w+)"', message)
    got = re.search(r"(?:Given value|Got value): (.*)", message)
    if key and got and key[1] in hints:
        hint = hints[key[1]]
        near = registry.nearest(got[1], map(str, get_args(hint))) if typing.get_origin(hint) is typing.Literal else ""
        return f"{key[1]} must be {describe(hint)}; got {got[1]!r}{near if 'mean' in near else ''}"
    return message
