"""The command line of a verb, from its signature: options, YAML files, Specs with changes inside, and what is said about mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest

from statescan import LanguageModel, Spec
from statescan.cli.arguments import parse


def verb(
    model: Spec[LanguageModel],
    steps: int,
    *,
    lr: float = 1e-3,
    name: str | None = None,
    data: list[str] | None = None,
    mixer: Callable[..., object] | None = None,
    schedule: Literal["cosine", "constant"] = "cosine",
    compile: bool = False,
) -> None:
    """Do something.

    Args:
        steps: how many
    """


def read(*argv: str, **files: str) -> dict:
    return parse(verb, argv, "statescan verb", files=True)


CONFIG = """
model:
  name: LanguageModel
  vocab_size: 300
  d_model: 16
  layers: MM
  parts: {M: {name: Mamba, d_state: 4}}
steps: 7
lr: 1e-2
"""


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    return str(file)


def test_a_file_gives_everything_and_the_rest_are_defaults(config):
    values = read(config)
    assert values["model"] == Spec(LanguageModel, vocab_size=300, d_model=16, layers="MM", parts={"M": Spec("Mamba", d_state=4)})
    assert {k: v for k, v in values.items() if k != "model"} == {
        "steps": 7,
        "lr": 0.01,
        "name": None,
        "data": None,
        "mixer": None,
        "schedule": "cosine",
        "compile": False,
    }
    assert type(values["lr"]) is float


def test_the_command_line_goes_over_files_and_later_files_over_earlier(config, tmp_path):
    (tmp_path / "second.yml").write_text("lr: 0.5\nname: second")
    values = read(config, "--config", str(tmp_path / "second.yml"), "--steps=9", "schedule=constant", "--compile", "--data", "[a, b]")
    assert (values["steps"], values["lr"], values["name"], values["schedule"]) == (9, 0.5, "second", "constant")
    assert values["compile"] is True
    assert values["data"] == ["a", "b"]


@pytest.mark.parametrize("dashes", ["--", ""])
def test_dotted_options_change_a_spec_inside(config, dashes):
    values = read(config, f"{dashes}model.parts.M.d_state=32", f"{dashes}model.layers=(M)*4", f"{dashes}model.norm_eps=1e-6")
    model = values["model"]
    assert model.arguments["parts"]["M"] == Spec("Mamba", d_state=32)
    assert model.arguments["layers"] == "(M)*4"
    assert model.arguments["norm_eps"] == 1e-6
    assert model.arguments["d_model"] == 16


def test_a_spec_is_the_name_of_a_model_or_part(config):
    values = read("mamba2-tiny", "3", "--model.d_model", "64", "--mixer=Mamba", "--mixer.expand=1")
    assert values["model"].arguments["d_model"] == 64
    assert values["steps"] == 3
    assert values["mixer"] == Spec("Mamba", expand=1)
    values = read(config, "model=mamba-tiny", "model.parts.M={name: Mamba2, headdim: 8}")
    assert values["model"].arguments["parts"]["M"] == Spec("Mamba2", headdim=8)


@pytest.mark.parametrize("text", ["#include <a>", "~", "123", "[1, 2]", "a: b", "- x", " ", "", "\n", '"q"', "{"])
def test_text_stays_as_it_is(config, text):
    assert read(config, "--name", text)["name"] == text
    assert read(config, f"name={text}")["name"] == text
    assert read(config, "--name=null")["name"] is None
    assert read(config, "--name=#", "--name=b")["name"] == "b"


def test_the_model_of_a_file_may_be_a_name_with_changes(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {name: mamba-tiny, d_model: 48}\nsteps: 1")
    assert read(str(tmp_path / "c.yaml"))["model"].arguments["d_model"] == 48


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--stesp=3"], r"statescan verb has no option --stesp; did you mean 'steps'\?"),
        (["--model.d_modle=3"], r"LanguageModel has no argument 'd_modle'; did you mean 'd_model'\?"),
        (["--model.parts.M.d_sate=3"], r"Mamba has no argument 'd_sate'; did you mean 'd_state'\?"),
        (["model.parts.N.d_state=3"], r"LanguageModel.parts has no entry 'N'"),
        (["model.d_model.x=3"], r"LanguageModel.d_model is 16, which has no part 'x'"),
        (["--model.parts.M.d_state=many"], r"Mamba.d_state must be int; got 'many'"),
        (["--model=mamba-tyni"], r"model: there is no model or part named 'mamba-tyni'; did you mean 'mamba-tiny'\?"),
        (["--steps=x"], r"steps must be int; got 'x'"),
        (["--schedule=cosin"], r"schedule must be one of 'cosine', 'constant'; got 'cosin'; did you mean 'cosine'\?"),
        (["--steps"], r"--steps needs a value"),
        (["a", "b", "c"], r"statescan verb cannot use 'c'"),
        (["--config=/nowhere.yaml"], r"no such file: /nowhere.yaml"),
    ],
)
def test_a_mistake_is_named_with_its_nearest_neighbour(config, argv, message):
    with pytest.raises(ValueError, match=message):
        read(config, *argv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stesp: 3", r"c.yaml: statescan verb has no option 'stesp'; did you mean 'steps'\?"),
        ("steps: many", r"c.yaml: steps must be int; got 'many'"),
        ("model: {name: LanguageModel, d_modle: 3}", r"LanguageModel has no argument 'd_modle'; did you mean 'd_model'\?"),
        ("model: [1]", r"model must be the name of a model or part, or a mapping"),
        ("a: [", r"c.yaml is not valid YAML"),
        ("- a", r"c.yaml must hold a mapping of options.*got list"),
        ("", r"c.yaml must hold a mapping of options.*got nothing"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(tmp_path, text, message):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read(str(file))


def test_what_is_missing_is_said():
    with pytest.raises(ValueError, match="statescan verb needs model, steps"):
        read()


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ValueError, match="not UTF-8"):
        read(str(tmp_path / "c.yaml"))


def test_help_shows_types_and_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--steps STEPS how many (required, type: int)" in text
    assert "(type: float, default: 0.001)" in text
    assert "--model MODEL" in text
    assert "Args:" not in text
