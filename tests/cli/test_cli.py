"""The command ``statescan``: what verbs print, and one clear line with exit code 2 for every mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import statescan
from statescan import Spec, create_model
from statescan.cli import VERBS, main
from statescan.data.tokenizers import ByteTokenizer
from statescan.interop import save_pretrained

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model of bytes with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_pretrained(create_model("mamba-tiny", vocab_size=257), path, ByteTokenizer())
    return path


@pytest.fixture
def broken(folder, tmp_path) -> Path:
    """A copy to damage."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def fails(capsys, *argv: object) -> str:
    """The one line on stderr of a command that must end with exit code 2."""
    assert main([str(word) for word in argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("statescan: ")
    return captured.err


def command(*argv: str, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "statescan", *argv], capture_output=True, timeout=120, env=environment, **options)


# -- verbs ------------------------------------------------------------------------------------------------------------------


def test_help_version_and_no_verb(capsys):
    for argv in ([], ["--help"], ["-h"], ["help"]):
        assert main(argv) == 0
        out = capsys.readouterr().out
        assert all(verb in out for verb in VERBS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"statescan {statescan.__version__}\n"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help_with_types(verb, capsys):
    for flag in ("--help", "-h"):
        assert main([verb, flag]) == 0
        out = capsys.readouterr().out
        assert f"usage: statescan {verb}" in out
        assert "Args:" not in out
        assert verb == "doctor" or "type: " in out


def test_wrong_names_are_met_with_the_nearest(capsys):
    assert "no verb 'generatex'; did you mean 'generate'?" in fails(capsys, "generatex")
    assert "did you mean 'temperature'?" in fails(capsys, "generate", "x", "--temprature=1")
    assert "did you mean 'mamba-130m'?" in fails(capsys, "info", "mamba-13m")
    assert "did you mean" in fails(capsys, "models", "mamba-13m")
    assert "did you mean 'parity'?" in fails(capsys, "check", "pariti", "mamba-tiny")
    assert "did you mean" in fails(capsys, "train", "--model=mamba-tyni")
    assert "cannot use 'extra'" in fails(capsys, "info", "mamba-tiny", "extra")


def test_models(capsys):
    assert main(["models", "mamba2*"]) == 0
    out = capsys.readouterr().out
    assert "mamba2-130m" in out
    assert "128,989,632" in out
    assert "mamba-130m" not in out
    assert "tiny" not in out
    assert main(["models", "--tiny"]) == 0
    assert "mamba2-tiny" in capsys.readouterr().out


def test_info_of_a_name_and_of_a_folder(capsys, folder):
    assert main(["info", "mamba-130m"]) == 0
    out = capsys.readouterr().out
    assert "129,135,360" in out
    assert f"{24 * (1536 * 16 + 1536 * 3) * 4:,} bytes per sequence" in out  # of ssm and convolution, float32
    assert "FLOPs for a token" in out
    assert "d_state: 16" in out
    assert main(["info", str(folder)]) == 0
    model = create_model("mamba-tiny", vocab_size=257)
    assert f"{sum(p.numel() for p in model.parameters()):,}" in capsys.readouterr().out


def test_cite(capsys, folder):
    assert main(["cite", "mamba2-tiny"]) == 0
    out = capsys.readouterr().out
    assert "dao2024transformers" in out
    assert "gu2023mamba" not in out
    assert main(["cite", str(folder)]) == 0
    assert "gu2023mamba" in capsys.readouterr().out


def test_check_laws_reports_and_fails_with_1(capsys, monkeypatch):
    import statescan.testing as testing

    monkeypatch.setattr(testing, "check_model", lambda model: testing.run.check_model(model, laws=[3], dtype=torch.float64))
    assert main(["check", "laws", "mamba-tiny"]) == 0
    assert "0 failed" in capsys.readouterr().out

    def broken(model):
        raise AssertionError("law 3")

    monkeypatch.setattr(testing, "check_model", broken)
    with pytest.raises(SystemExit) as stop:
        main(["check", "laws", "mamba-tiny"])
    assert stop.value.code == 1


def test_check_parity_reports_and_fails_with_1(capsys, monkeypatch, folder):
    import statescan.analysis as analysis

    class Found:
        def __init__(self, model):
            self.ok = model == "mamba-tiny"

        def __str__(self):
            return f"parity is {self.ok}"

    monkeypatch.setattr(analysis, "parity", Found)
    assert main(["check", "parity", "mamba-tiny"]) == 0
    with pytest.raises(SystemExit) as stop:
        main(["check", "parity", str(folder)])
    assert stop.value.code == 1
    assert capsys.readouterr().out == "parity is True\nparity is False\n"


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in (torch.__version__, "threads", "kernels", "causal_conv1d", "selective_scan", "ssd", "diagonal_scan", "runs"):
        assert word in out


def test_doctor_reads_the_extras_from_the_package(capsys, monkeypatch):
    from importlib import metadata

    needs = ["torch>=2.6", 'tokenizers>=0.20; extra == "hub"', "no-such-package>=1 ; extra == 'hub'"]
    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    assert main(["doctor"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("hub")
    assert "without no-such-package: pip install 'statescan[hub]'" in line
    assert "torch" not in line


# -- generate ---------------------------------------------------------------------------------------------------------------


def generated(capsys, *argv: object) -> str:
    assert main(["generate", *map(str, argv)]) == 0
    return capsys.readouterr().out


def test_generate_streams_the_continuation(capsys, folder, tmp_path):
    how = ("--max_new_tokens=20", "--seed=3")
    text = generated(capsys, folder, "def ", *how)
    assert (
        text == statescan.procedures.generate.generate(statescan.interop.from_pretrained(folder), "def ", max_new_tokens=20, seed=3) + "\n"
    )
    assert generated(capsys, folder, "--prompt", "def ", *how) == text
    assert generated(capsys, folder, "def ", *how, "--echo") == "def " + text
    file = tmp_path / "prompt.txt"
    file.write_text("def ")
    assert generated(capsys, folder, "--prompt_file", file, *how) == text
    several = generated(capsys, folder, "def ", *how, "--num_return_sequences=2")
    assert several.startswith(f"--- 1\n{text}--- 2\n")


def test_a_state_is_saved_and_continued(capsys, folder, tmp_path):
    state = tmp_path / "state.safetensors"
    greedy = ("--temperature=0", "--max_new_tokens")
    whole = generated(capsys, folder, "import ", *greedy, 12)
    first = generated(capsys, folder, "import ", *greedy, 5, "--save_state", state)
    second = generated(capsys, folder, "--load_state", state, *greedy, 7)
    assert first.removesuffix("\n") + second == whole


def test_generate_through_a_pipe(folder):
    done = command("generate", str(folder), "--prompt_file", "-", "--max_new_tokens=4", "--seed=0", input="für".encode())
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert done.stdout.endswith(b"\n")


# -- train and eval -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts")
    for i in range(3):
        (path / f"{i}.txt").write_text(f"{i} little words and some more of them\n" * 40)
    return path


def test_train_from_a_file_then_resume_generate_and_eval(capsys, texts, tmp_path):
    pytest.importorskip("accelerate")
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(f"model: {{name: mamba-tiny, vocab_size: 257}}\ndata: {texts}\nsteps: 2\nbatch_size: 2\nlength: 16\n")
    assert main(["train", str(config), f"run={run}", "model.parts.M.d_state=4", "--quiet"]) == 0
    assert "d_state: 4" in (run / "config.yaml").read_text()
    assert main(["train", "--resume", str(run), "--quiet"]) == 0
    capsys.readouterr()
    assert generated(capsys, run, "a", "--max_new_tokens=3", "--seed=0")
    assert main(["eval", str(run), str(texts)]) == 0
    assert "bits per byte" in capsys.readouterr().out
    assert "holds a run already" in fails(capsys, "train", config, "--run", run)


def test_train_and_eval_on_what_is_not_text(capsys, folder, texts, tmp_path):
    pytest.importorskip("accelerate")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "noise.txt").write_bytes(b"\xff\xfe\xfd")
    start = ("mamba-tiny", "--model.vocab_size=257", "--run", tmp_path / "run")
    for verb in (("train", *start, "--data"), ("eval", folder)):
        assert "is empty" in fails(capsys, *verb, tmp_path / "empty.txt")
        assert "is not UTF-8 text" in fails(capsys, *verb, tmp_path / "noise.txt")
        assert "there is no file or folder" in fails(capsys, *verb, tmp_path / "nowhere")
    assert "needs data, run" in fails(capsys, "train", "mamba-tiny")
    assert "names a part 'Q'" in fails(capsys, "train", *start, "--data", texts, "--model.layers=Q*2")
    assert "did you mean 'd_state'?" in fails(capsys, "train", *start, "--data", texts, "--model.parts.M.d_sate=2")


# -- faults -----------------------------------------------------------------------------------------------------------------


def test_no_prompt_or_an_empty_one(capsys, folder, tmp_path):
    assert "--prompt" in fails(capsys, "generate", folder)
    assert "the prompt has no tokens" in fails(capsys, "generate", folder, "--prompt=")
    (tmp_path / "empty.txt").write_text("")
    assert "the prompt has no tokens" in fails(capsys, "generate", folder, "--prompt_file", tmp_path / "empty.txt")
    assert "not both" in fails(capsys, "generate", folder, "a", "--prompt_file", tmp_path / "empty.txt")


def test_a_prompt_file_that_is_missing_or_not_text(capsys, folder, tmp_path):
    assert "nowhere.txt" in fails(capsys, "generate", folder, "--prompt_file", tmp_path / "nowhere.txt")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    assert "not UTF-8 text" in fails(capsys, "generate", folder, "--prompt_file", tmp_path / "image.png")
    done = command("generate", str(folder), "--prompt_file=-", input=b"\xff\xfe")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"standard input is not UTF-8" in done.stderr


def test_a_model_that_is_not_there(capsys, tmp_path):
    assert "no such folder" in fails(capsys, "generate", tmp_path / "nowhere" / "at" / "all", "a")
    assert "untrained" in fails(capsys, "generate", "mamba-130m", "a")
    assert "config.json" in fails(capsys, "generate", tmp_path, "a")
    (tmp_path / "checkpoints").mkdir()
    assert "without a checkpoint" in fails(capsys, "generate", tmp_path, "a")


def test_a_truncated_checkpoint(capsys, broken):
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors" in fails(capsys, "generate", broken, "a")


def test_a_checkpoint_of_another_model(capsys, broken):
    save_file({"something.else": torch.zeros(3)}, broken / "model.safetensors")
    fails(capsys, "generate", broken, "a")


def test_a_key_too_many(capsys, broken):
    tensors = load_file(broken / "model.safetensors")
    save_file({**tensors, "backbone.layers.0.mixer.extra": torch.zeros(1)}, broken / "model.safetensors")
    assert "backbone.layers.0.mixer.extra" in fails(capsys, "generate", broken, "a")


def test_a_nan_in_a_weight(capsys, broken):
    tensors = load_file(broken / "model.safetensors")
    tensors["backbone.layers.1.mixer.D"][0] = float("nan")
    save_file(tensors, broken / "model.safetensors")
    assert "backbone.layers.1.mixer.D" in fails(capsys, "generate", broken, "a")


def test_a_missing_tokenizer(capsys, tmp_path):
    save_pretrained(create_model("mamba-tiny"), tmp_path)
    assert "tokenizer" in fails(capsys, "generate", tmp_path, "a")


def test_a_config_that_is_impossible_or_no_config(capsys, broken):
    file = broken / "config.json"
    text = file.read_text()
    file.write_text(text.replace('"d_model": 32', '"d_model": -32'))
    fails(capsys, "generate", broken, "a")
    file.write_text(text.replace('"d_state"', '"d_sate"'))
    assert "did you mean 'd_state'?" in fails(capsys, "generate", broken, "a")
    file.write_text(text[: len(text) // 2])
    assert "not valid JSON" in fails(capsys, "generate", broken, "a")


def test_a_state_of_another_model_or_no_state(capsys, folder, tmp_path):
    other = tmp_path / "other"
    save_pretrained(create_model("mamba-tiny", vocab_size=257, d_model=16), other, ByteTokenizer())
    state = tmp_path / "state.safetensors"
    generated(capsys, other, "a", "--max_new_tokens=1", "--save_state", state)
    assert "another model" in fails(capsys, "generate", folder, "a", "--load_state", state)
    assert "not a saved state" in fails(capsys, "generate", folder, "a", "--load_state", folder / "model.safetensors")
    assert "no such file" in fails(capsys, "generate", folder, "a", "--load_state", tmp_path / "none")


def test_impossible_sampling(capsys, folder):
    assert "top_p" in fails(capsys, "generate", folder, "a", "--top_p=2")
    assert "max_new_tokens must be int; got 'many'" in fails(capsys, "generate", folder, "a", "--max_new_tokens=many")


def test_resuming_what_is_no_run(capsys, tmp_path):
    assert "not a run folder" in fails(capsys, "train", "--resume", tmp_path)


# -- how it ends ------------------------------------------------------------------------------------------------------------


def test_a_bug_keeps_its_traceback(monkeypatch, capsys):
    import statescan.cli.models as verb

    def bug(pattern: str = "*") -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(verb, "run", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["models"])


def test_ctrl_c_is_130_and_debug_shows_the_traceback(monkeypatch, capsys):
    import statescan.cli.models as verb

    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "run", stopped)
    assert main(["models"]) == 130
    monkeypatch.setenv("STATESCAN_DEBUG", "1")
    with pytest.raises(ValueError, match="there is no verb"):
        main(["nothing"])


def test_a_reader_that_leaves_early_hears_no_complaint():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "statescan", "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    process.stdout.close()
    _, stderr = process.communicate(timeout=120)
    assert stderr == b""


def test_specs_survive_the_command_line(folder):
    assert Spec.of(statescan.interop.from_pretrained(folder)) == Spec.of(create_model("mamba-tiny", vocab_size=257))
