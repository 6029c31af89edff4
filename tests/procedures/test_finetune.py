"""Finetuning end to end: it learns the completions, resumes to the bit, merges exactly; the result quantises, generates and exports."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("accelerate")
pytest.importorskip("peft")

import statescan as ss
from statescan.cli import main
from statescan.data import ByteTokenizer
from statescan.files import read_safetensors
from statescan.interop.adapters import load_adapter
from statescan.procedures import loop
from statescan.procedures.finetune import FinetuneResult, Finetuning, Interrupted, finetune, resume
from statescan.procedures.quantize import quantize_folder
from statescan.procedures.runs import RunFolder
from statescan.procedures.train import train
from statescan.spec import Spec

HYBRID = Spec(
    "LanguageModel",
    vocab_size=257,
    d_model=32,
    layers="(MAF)*2",
    parts={
        "M": Spec("Mamba2", d_state=8, headdim=16, chunk_size=16),
        "A": Spec("Attention", num_heads=2),
        "F": Spec("GatedMLP", d_ff=48),
    },
)
NAMES = ["ada", "bob", "cid", "dot", "eve", "fay", "gus", "hal"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid that has seen a little text."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base")
    (folder / "text.txt").write_text("".join(f"{a} met {b}. " for a in NAMES for b in NAMES) * 6)
    options: dict[str, Any] = {"steps": 40, "batch_size": 4, "length": 48, "piece": 200, "lr": 5e-3, "warmup": 4, "eval_every": 0}
    train(HYBRID, str(folder / "text.txt"), str(folder / "run"), **options, quiet=True)
    return folder / "run"


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three kinds of line, of one small language."""
    file = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    with open(file, "w") as out:
        for i in range(48):
            name, thing = NAMES[i % 8], "xyz"[i // 8 % 3]
            asked, answer = f"{i}: {name}, {thing}?", f"{name} has {thing * 3}."
            kinds = [
                {"text": f"{asked} {answer}"},
                {"prompt": f"{asked} ", "completion": answer},
                {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]},
            ]
            print(json.dumps(kinds[i % 3]), file=out)
    return file


def toy(model: Path | str, data: Path | str, run: Path, **options: Any) -> FinetuneResult:
    """Fourteen steps of everything: dropout, accumulation, windows shorter than the examples."""
    toy: dict[str, Any] = {"steps": 14, "batch_size": 2, "length": 32, "accumulate": 2, "rank": 4, "alpha": 8.0, "dropout": 0.1, "lr": 5e-3}
    toy |= {"warmup": 2, "held_out_fraction": 0.2, "save_every": 5, "log_every": 2, "quiet": True}
    return finetune(str(model), str(data), str(run), **{**toy, **options})


def weights(folder: Path, name: str = "model.safetensors") -> dict[str, bytes]:
    return {n: t.numpy().tobytes() for n, t in read_safetensors(folder / name)[0].items()}


def figures(run: Path) -> list[dict[str, float]]:
    """metrics.csv but for the clock."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in RunFolder(run).read_metrics()]


@pytest.fixture(scope="module")
def undisturbed(base: Path, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    torch.set_num_threads(1)
    return toy(base, chats, tmp_path_factory.mktemp("undisturbed") / "run")


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, what: Any) -> None:
    update = loop.Progress.update

    def update_and(self: Any, now: int, bits_per_byte: float) -> bool:
        if now == step:
            what()
        return update(self, now, bits_per_byte)

    monkeypatch.setattr(loop.Progress, "update", update_and)


# -- one hybrid, end to end ---------------------------------------------------------------------------------------------------


def test_a_hybrid_from_adapters_to_four_bits(base: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    result = toy(base, chats, run, steps=60, dropout=0.0, batch_size=4, length=64, accumulate=1, save_every=0, quiet=False, log_every=20)
    assert result.held_out_after < result.held_out_before - 0.5
    said = capsys.readouterr().err
    assert "of them trained" in said
    assert "tok/s" in said
    assert "left" in said
    rows = RunFolder(run).read_metrics()
    assert (rows[0]["step"], rows[0]["held_out_bpb"]) == (0, pytest.approx(result.held_out_before))
    assert rows[-1]["held_out_bpb"] == pytest.approx(result.held_out_after)

    before, merged = ss.from_pretrained(base), ss.from_pretrained(run)
    changed = {n for (n, p), (_, q) in zip(before.named_parameters(), merged.named_parameters(), strict=True) if not torch.equal(p, q)}
    linear = {f"{n}.weight" for n, m in merged.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    assert len(linear) == 18
    assert changed == linear, "every projection has changed, and nothing else"
    adapted = load_adapter(before, run / "adapter")
    ids = torch.tensor([merged.tokenizer.encode("7: ada, x? ada has xxx.")])
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids), merged(ids), atol=1e-5, rtol=0)

    report = quantize_folder(str(run), str(tmp_path / "int4"))
    assert len(report.report.layers) == 19
    small = ss.from_pretrained(tmp_path / "int4")
    text = ss.generate(small, "7: ada, x? ", max_new_tokens=8, do_sample=False)
    assert isinstance(text, str)
    assert ss.generate(small, "7: ada, x? ", max_new_tokens=8, do_sample=False) == text


def test_the_whole_model(base: Path, chats: Path, tmp_path: Path) -> None:
    result = toy(base, chats, tmp_path / "run", adapter="full", steps=20, accumulate=1, length=64, lr=2e-3)
    assert result.held_out_after < result.held_out_before - 0.2
    assert (result.adapter, result.model) == (None, tmp_path / "run")
    before, after = ss.from_pretrained(base), ss.from_pretrained(tmp_path / "run")
    assert [n for (n, p), (_, q) in zip(before.named_parameters(), after.named_parameters(), strict=True) if torch.equal(p, q)] == []


# -- stopped and continued ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "how"), [(7, "term"), (7, "dies"), (3, "dies")])
def test_stopped_and_resumed_ends_with_the_same_losses_and_bits(
    base: Path, chats: Path, tmp_path: Path, undisturbed: FinetuneResult, monkeypatch: pytest.MonkeyPatch, step: int, how: str
) -> None:
    run = tmp_path / "run"

    def die() -> None:
        raise RuntimeError("the machine is gone")

    with monkeypatch.context() as patch:
        at_step(patch, step, die if how == "dies" else lambda: os.kill(os.getpid(), signal.SIGTERM))
        expected = (RuntimeError, "gone") if how == "dies" else (Interrupted, rf"after step {step}; .*statescan finetune --resume")
        with pytest.raises(expected[0], match=expected[1]):
            toy(base, chats, run)
    assert not (run / "model.safetensors").exists()
    with pytest.raises(ValueError, match="continue it with `statescan finetune --resume"):
        toy(base, chats, run)
    result = resume(str(run), quiet=True)
    assert (result.held_out_before, result.held_out_after) == (undisturbed.held_out_before, undisturbed.held_out_after)
    assert figures(run) == figures(undisturbed.run)
    assert weights(run) == weights(undisturbed.run)
    assert weights(run / "adapter", "adapter_model.safetensors") == weights(undisturbed.run / "adapter", "adapter_model.safetensors")


def test_merging_and_exporting_afterwards(chats: Path, tmp_path: Path) -> None:
    """A transformers folder comes in, without a tokenizer; its finetuned copy leaves as one, with the same logits there."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ss.export_pretrained(ss.create_model("mamba2-tiny", vocab_size=257), tmp_path / "hub")
    run = tmp_path / "run"
    with pytest.raises(ValueError, match="has no tokenizer: name one"):
        toy(tmp_path / "hub", chats, run)
    first = toy(tmp_path / "hub", chats, run, tokenizer="bytes", merge=False)
    assert (first.model, first.exported) == (None, None)
    assert not (run / "config.json").exists()
    with pytest.raises(ValueError, match="what is exported is the merged model"):
        resume(str(run), export="transformers")
    result = resume(str(run), merge=True, export="transformers")
    assert result.exported == run / "transformers"
    assert result.held_out_after == first.held_out_after < first.held_out_before
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run / "transformers").eval()
    ours = ss.from_pretrained(run)
    ids = torch.randint(0, 257, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids), atol=1e-4, rtol=0)


def test_a_published_hybrid_comes_and_goes(chats: Path, tmp_path: Path) -> None:
    """Bamba (Mamba-2, attention, gated feed-forward) as transformers writes it: adapters, merge, four bits, generate, export."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BambaConfig(
        vocab_size=257, hidden_size=24, num_hidden_layers=3, attn_layer_indices=[1], num_attention_heads=6, num_key_value_heads=2,
        intermediate_size=20, mamba_n_heads=6, mamba_n_groups=2, mamba_d_state=5, mamba_d_head=8, mamba_chunk_size=4,
    )  # fmt: skip
    transformers.BambaForCausalLM(config).save_pretrained(tmp_path / "hub")
    run = tmp_path / "run"
    result = toy(tmp_path / "hub", chats, run, tokenizer="bytes", steps=20, export="transformers")
    assert result.held_out_after < result.held_out_before
    before, ours = ss.from_pretrained(tmp_path / "hub"), ss.from_pretrained(run)
    same = [n for (n, p), (_, q) in zip(before.named_parameters(), ours.named_parameters(), strict=True) if torch.equal(p, q)]
    assert [n for n in same if "proj" in n] == []
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run / "transformers").eval()
    ids = torch.randint(0, 257, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids), atol=1e-4, rtol=0)
    quantize_folder(str(run), str(tmp_path / "int4"))
    assert len(ss.generate(ss.from_pretrained(tmp_path / "int4"), ids[0].tolist(), max_new_tokens=5, eos_token_id=())) == 5


def test_other_folders_and_the_stored_precision(chats: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ss.export_pretrained(ss.create_model("mamba-tiny", vocab_size=257), tmp_path / "original", "mamba_ssm", dtype=torch.bfloat16)
    result = toy(tmp_path / "original", chats, tmp_path / "run", tokenizer="bytes", steps=2, dropout=0.0, export="mamba_ssm")
    stored = read_safetensors(tmp_path / "run" / "model.safetensors")[0]
    assert {t.dtype for n, t in stored.items() if n.endswith("in_proj.weight")} == {torch.bfloat16}
    assert {t.dtype for n, t in stored.items() if n.endswith("A_log")} == {torch.float32}
    checkpoint = RunFolder(tmp_path / "run").latest()
    assert checkpoint is not None
    assert {t.dtype for t in read_safetensors(checkpoint / "adapter_model.safetensors")[0].values()} == {torch.float32}
    assert result.exported is not None
    ids = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(ss.from_pretrained(result.exported)(ids), ss.from_pretrained(tmp_path / "run")(ids))


def test_a_base_that_has_changed(base: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = HYBRID()
    ss.save_pretrained(model, tmp_path / "base", ByteTokenizer())
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            toy(tmp_path / "base", chats, tmp_path / "run")
    with torch.no_grad():
        model.backbone.norm_f.weight.mul_(2)
    ss.save_pretrained(model, tmp_path / "base", ByteTokenizer())
    with pytest.raises(ValueError, match=r"is not what .* was trained on"):
        resume(str(tmp_path / "run"), quiet=True)


# -- what is learned ----------------------------------------------------------------------------------------------------------


def begun(base: Path, data: Path, run: Path, **options: Any) -> Finetuning:
    """A run that has not taken a step."""
    import inspect

    defaults = {n: p.default for n, p in inspect.signature(finetune).parameters.items()}
    return Finetuning({**defaults, "model": str(base), "data": str(data), "run": str(run), "steps": 4, "quiet": True, **options})


def test_every_target_of_a_step_counts_the_same(base: Path, chats: Path, tmp_path: Path) -> None:
    """However many of them a batch has: the loss is that of all predicted tokens, and of no other."""
    run = begun(base, chats, tmp_path / "run", batch_size=1, length=24, accumulate=3, carry_state=False)
    position = run.windows.position
    batches = run._draw()
    counts = [int((b.targets >= 0).sum()) for b in batches]
    assert len(set(counts)) > 1
    with torch.no_grad():
        nats = [F.cross_entropy(run.bare(b.inputs, b.timeline)[0], b.targets[0], reduction="sum") for b in batches]
    run.windows.position = position
    loss, _ = run._step()
    assert loss == pytest.approx(float(sum(nats)) / sum(counts), rel=1e-5)


def test_a_prompt_longer_than_a_window_is_read_and_the_cache_is_bounded(base: Path, tmp_path: Path) -> None:
    """The answer's loss is that of the whole example, though it was read in windows, most of which predict nothing."""
    data = tmp_path / "long.jsonl"
    lines = [{"prompt": f"{name} " * 10, "completion": "yes."} for name in NAMES]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "held.jsonl").write_text(json.dumps({"prompt": "ada?", "completion": "no."}))
    run = begun(base, data, tmp_path / "run", batch_size=1, length=9, held_out=str(tmp_path / "held.jsonl"), lr=1e-12, epochs=2.0)
    with torch.no_grad():
        ids = torch.tensor([[256, *f"{NAMES[int(run.windows._order[0])]} ".encode() * 10, *b"yes.", 256]])
        logits = run.bare(ids[:, :-1])[0]
    nats = F.cross_entropy(logits[-5:], ids[0, -5:], reduction="none")
    first, _ = run._step()  # 45 tokens are read in five windows, and the last holds all that is predicted
    assert first == pytest.approx(float(nats.mean()), abs=1e-4)
    for _ in range(5):
        run._step()
    cache = run.state.layers[1]
    assert cache.keys.shape[1] == int(cache.position.max()) <= 45


def test_epochs_decide_the_steps(base: Path, chats: Path, tmp_path: Path) -> None:
    run = begun(base, chats, tmp_path / "run", steps=None, epochs=2.0, batch_size=2, length=16)
    tokens = len(run.train_corpus.tokens) - 1
    assert 2 * tokens <= run.o.steps * 32 < 2 * tokens + 32


# -- what goes wrong ----------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_line_and_exit_code_2(base: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"prompt": "only"}\n')
    broken = ss.from_pretrained(base)
    with torch.no_grad():
        broken.backbone.norm_f.weight[0] = torch.nan
    ss.save_pretrained(broken, tmp_path / "broken")
    small = ss.from_pretrained(base)
    ss.quantize(small, "int8")
    ss.save_pretrained(small, tmp_path / "small")
    run = f"--run={tmp_path / 'run'}"
    for argv, message in (
        ([base, "--data", bad], "bad.jsonl, line 2: expected text, or prompt and completion, or messages; got 'prompt'"),
        ([base, "--data", tmp_path / "nowhere.jsonl"], "there is no file or folder"),
        ([tmp_path / "broken", "--data", chats], "not finite: backbone.norm_f.weight"),
        ([tmp_path / "small", "--data", chats], "is quantised: finetune the model it was made from"),
        ([base, "--data", chats, "--export=transformers"], "transformers cannot hold this model"),
        ([base, "--data", chats, "--adapter=dora"], "adapter must be"),
        ([base, "--data", chats, "--targets=in_porj"], "did you mean 'in_proj'"),
        ([base, "--data", chats, "--epochs=0"], "epochs must be greater than 0"),
        ([base, "--data", chats, "--steps=0"], "steps must be greater than 0"),
        ([base], "statescan finetune needs data"),
        (["--resume", tmp_path], "is not a run folder"),
    ):
        words = [str(word) for word in argv]
        assert main(["finetune", *words, *([] if "--resume" in words else [run])]) == 2, argv
        said = capsys.readouterr().err
        assert message in said, argv
        assert said.count("\n") == 1
    assert not (tmp_path / "run").exists(), "nothing is written before the options are known to be possible"


def test_the_command_line(base: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [str(base), "--data", str(chats), "--adapter", "lora", "--steps=2", "--batch_size=1", "--length=16", "--quiet"]
    assert main(["finetune", *argv]) == 0
    name = f"runs/{base.name}-lora"
    assert capsys.readouterr().out.splitlines()[1:] == [f"adapter: {name}/adapter", f"model: {name}"]
    assert main(["generate", name, "--prompt", "ada", "--max_new_tokens=3"]) == 0
    assert main(["finetune", "--resume", name]) == 0


def test_without_peft(base: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'statescan\[peft\]'; or .* adapter='full'"):
        toy(base, chats, tmp_path / "run")
    toy(base, chats, tmp_path / "run", adapter="full", steps=1)
