"""A run of ``statescan sound``, its floors, and generation from its folder."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import statescan as ss
from statescan.backbones import PoolUNet
from statescan.cli import main
from statescan.data.waves import Waves, read_mono, split_waves, write_wav
from statescan.engine.sound import SoundDecoder
from statescan.files import read_safetensors
from statescan.heads.sound import SoundModel
from statescan.mixers import S4D
from statescan.procedures import sound as module
from statescan.procedures.interrupt import Interrupted
from statescan.procedures.sound import sound
from statescan.procedures.sound_floors import counted, lstm_like, predicted
from statescan.procedures.sound_generate import generate_sound, nats_of
from statescan.procedures.sound_plot import spectrogram
from statescan.spec import Spec

MODEL = Spec(
    SoundModel, d_model=4, network=Spec(PoolUNet, mixer=Spec(S4D, d_state=2), n_layers=1, pool=(2,)), levels=32, coding="linear", rate=1000
)


def recordings(folder: Path, n: int = 6) -> Path:
    generator = torch.Generator().manual_seed(0)
    for i in range(n):
        t = torch.arange(150 + 20 * i) / 1000
        write_wav(folder / f"{i}.wav", 0.6 * torch.sin(300 * t + i) + 0.02 * torch.randn(len(t), generator=generator), 1000)
    return folder


def net(**arguments: Any) -> SoundModel:
    torch.manual_seed(0)
    made = MODEL.override(arguments)()
    for name, parameter in made.named_parameters():  # an output that depends on what came before
        if name.startswith("head"):
            torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()  # type: ignore[no-any-return]


def noise(n: int, levels: int, *lengths: int) -> Waves:
    rng = np.random.default_rng(n)
    return Waves.join([rng.integers(0, levels, length).astype(np.uint8) for length in lengths], list(map(str, range(len(lengths)))), 1000)


# -- how likely sound is --------------------------------------------------------------------------------------------------------


def test_streamed_nll_is_that_of_the_whole() -> None:
    for components in (0, 2):
        model, waves = net(components=components).double(), noise(0, 32, 5, 61, 40)
        whole = nats_of(model, waves)
        np.testing.assert_allclose(nats_of(model, waves, chunk=7), whole, rtol=1e-9)
        np.testing.assert_allclose(nats_of(model, waves, budget=1), whole, rtol=1e-9)
        decoder, before, nats = SoundDecoder(model, 1), torch.tensor([model.silence]), 0.0
        for level in torch.from_numpy(waves.recording(1).astype(np.int64)):
            nats += float(model.nll(decoder.step(before), level.view(1)))
            before = level.view(1)
        assert nats == pytest.approx(whole[1], rel=1e-9)


def test_generation() -> None:
    model = net()
    made = generate_sound(model, 30, rows=3, seed=5).levels
    alone = generate_sound(model, 30, seed=6).levels
    assert torch.equal(made[1], alone[0])  # a row is its seed's, whatever stands beside it
    assert not torch.equal(made[0], made[1])
    greedy = generate_sound(model, 12, prompt=made[0, :9], temperature=0.0).levels
    with torch.no_grad():
        ids = torch.cat([torch.tensor([model.silence]), made[0, :9], greedy[0]]).unsqueeze(0)
        assert torch.equal(model(ids)[0, 9:-1].argmax(-1), greedy[0])
    mixture = generate_sound(net(components=2, levels=65536), 20, seed=1).levels
    assert 0 <= int(mixture.min()) <= int(mixture.max()) < 65536
    for wrong in ({"samples": 0}, {"temperature": -1.0}, {"prompt": torch.zeros(0)}):
        with pytest.raises(ValueError, match=r"must be|at least one"):
            generate_sound(model, **{"samples": 4, **wrong})  # type: ignore[arg-type]


def test_draws_follow_the_model() -> None:
    model = net()
    first = generate_sound(model, 1, rows=4000, seed=range(4000)).levels[:, 0]
    with torch.no_grad():
        p = model(torch.tensor([[model.silence]]))[0, 0].softmax(-1)
    counts = torch.bincount(first, minlength=32)
    assert ((counts - 4000 * p) / (4000 * p * (1 - p)).sqrt()).abs().max() < 4.5


# -- floors ---------------------------------------------------------------------------------------------------------------------


def test_counting_against_a_plain_loop() -> None:
    taught, tested = noise(1, 3, 9, 4), noise(2, 3, 6)
    found = counted(taught, tested, 3)
    rows = [[1, 1, *map(int, taught.recording(i))] for i in range(2)]
    asked, bits = [1, 1, *map(int, tested.recording(0))], 0.0
    for t in range(2, len(asked)):
        p = (sum(r[2:].count(asked[t]) for r in rows) + 1) / (13 + 3)
        for order in (1, 2):
            past = asked[t - order : t]
            follow = [r[k] for r in rows for k in range(2, len(r)) if r[k - order : k] == past]
            if follow:
                p = (follow.count(asked[t]) + len(set(follow)) * p) / (len(follow) + len(set(follow)))
        bits -= np.log2(p)
    assert found["two levels before"] == pytest.approx(bits / 6)
    assert found["uniform"] == pytest.approx(np.log2(3))


def test_linear_prediction_finds_a_tone(tmp_path: Path) -> None:
    model = net(levels=256)
    t = np.arange(400)
    tones = [model.encode(torch.from_numpy(0.7 * np.sin(0.3 * t + i))).numpy().astype(np.uint8) for i in range(4)]
    waves = Waves.join(tones, list("abcd"), 1000)
    assert predicted(waves.pick([0, 1, 2]), waves.pick([3]), model) < 2.5
    hiss = noise(3, 256, 3000)
    assert 7.8 < predicted(hiss, hiss, model) < 8.3


def test_the_lstm_is_of_equal_size() -> None:
    for model in (net(), net(components=3)):
        own, other = (sum(p.numel() for p in m.parameters()) for m in (model, lstm_like(model)))
        assert abs(own - other) / own < 0.15


# -- a run ----------------------------------------------------------------------------------------------------------------------


def options(folder: Path, run: Path, **changes: Any) -> dict[str, Any]:
    return {
        "data": str(folder), "run": str(run), "model": MODEL, "steps": 6, "eval_every": 3, "batch_size": 2, "length": 40, "warmup": 2,
        "floor_steps": 2, "samples": 2, "seconds": 0.05, "held_out_fraction": 0.3, "plot": False, "quiet": True, **changes,
    }  # fmt: skip


def test_a_run_and_its_continuation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = recordings(tmp_path / "data")
    done = sound(**options(folder, tmp_path / "whole", plot=True))
    assert {path.name for path in (tmp_path / "whole").iterdir()} >= {
        "config.yaml", "environment.json", "metrics.csv", "curve.png", "sound.png", "table.md", "scores.json", "model.safetensors",
    }  # fmt: skip
    assert set(done.bits) == {"PoolUNet", "LSTM", "uniform", "histogram", "two levels before", "linear prediction from 32"}
    scores = json.loads((tmp_path / "whole" / "scores.json").read_text())
    assert scores["bits_per_sample"] == dict(done.bits)
    model = ss.from_pretrained(tmp_path / "whole")
    made = read_mono(tmp_path / "whole" / "samples" / "sample-1.wav", 1000)
    bits = nats_of(model, Waves.join([model.encode(made).numpy().astype(np.uint8)], ["x"], 1000))[0] / np.log(2) / len(made)
    assert bits == pytest.approx(scores["generated"]["samples/sample-1.wav"], rel=1e-5)

    real = module.crops

    def stopping(waves: Waves, rows: int, length: int, silence: int, seed: tuple[int, int]) -> Any:
        if seed[1] == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(waves, rows, length, silence, seed)

    monkeypatch.setattr(module, "crops", stopping)
    with pytest.raises(Interrupted, match=r"stopped after step 5; continue with: statescan sound --resume"):
        sound(**options(folder, tmp_path / "parts", floor_steps=0))
    monkeypatch.undo()
    assert main(["sound", "--resume", str(tmp_path / "parts"), "--quiet=true"]) == 0
    assert not [*(tmp_path / "parts").glob("lstm*")]
    assert "| PoolUNet |" in capsys.readouterr().out
    one, two = (read_safetensors(tmp_path / name / "model.safetensors")[0] for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (tmp_path / "whole" / "metrics.csv").read_text() == (tmp_path / "parts" / "metrics.csv").read_text()
    assert yaml.safe_load((tmp_path / "parts" / "config.yaml").read_text())["length"] == 40

    # a floor of another number of steps is another fit
    assert main(["sound", "--resume", str(tmp_path / "parts"), "--floor_steps=1", "--quiet=true"]) == 0
    assert main(["sound", "--resume", str(tmp_path / "parts"), "--floor_steps=2", "--quiet=true"]) == 0
    capsys.readouterr()
    assert {path.name for path in (tmp_path / "parts").glob("lstm*")} == {"lstm-1", "lstm-2"}
    again = json.loads((tmp_path / "parts" / "scores.json").read_text())
    assert again["bits_per_sample"] == scores["bits_per_sample"]

    out = tmp_path / "more.wav"
    prompt = str(folder / "0.wav")
    assert main(["generate", str(tmp_path / "whole"), "--seconds=0.1", f"--out={out}", f"--prompt_file={prompt}", "--seed=1"]) == 0
    assert f"{out}: 0.1 s behind 0.15 s" in capsys.readouterr().out
    assert len(read_mono(out, 1000)) == 150 + 100
    for wrong, message in (
        (["--top_k=3"], "is a model of sound, which takes"),
        (["--out=x.mp3"], r"out must be a \.wav file"),
        (["--seconds=0"], "seconds must be positive"),
    ):
        assert main(["generate", str(tmp_path / "whole"), *wrong]) == 2
        assert message.replace("\\", "") in capsys.readouterr().err
    (tmp_path / "x.txt").write_text("some text to measure on\n" * 9)
    assert main(["eval", str(tmp_path / "whole"), str(tmp_path / "x.txt")]) == 2
    error = capsys.readouterr().err
    assert "is a SoundModel: bits per byte are those of a language model" in error
    assert error.count("\n") == 1


def test_what_is_checked_on_is_a_fraction_of_what_is_not_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that the first split has left all stand above its fraction; the second is by other places."""
    folder, found = recordings(tmp_path / "data", 30), []

    def split(*arguments: Any, **options: Any) -> tuple[Waves, Waves]:
        found.append(split_waves(*arguments, **options))
        return found[-1]

    class Enough(Exception):
        """The parts are all that is asked for."""

    def stop(*arguments: Any) -> None:
        raise Enough

    monkeypatch.setattr(module, "split_waves", split)
    monkeypatch.setattr(module, "counted", stop)
    with pytest.raises(Enough):
        sound(**options(folder, tmp_path / "run", val_fraction=0.3))
    (others, tested), (taught, checked) = found
    assert len(checked.names) > 2
    assert sorted((*taught.names, *checked.names, *tested.names)) == sorted(path.name for path in folder.iterdir())
    assert set(others.names) == {*taught.names, *checked.names}


def test_mistakes(tmp_path: Path) -> None:
    folder = recordings(tmp_path / "data", 2)
    with pytest.raises(ValueError, match="LanguageModel is not a model of sound"):
        sound(**options(folder, tmp_path / "run", model=ss.registry.models["mamba-tiny"].spec))
    with pytest.raises(ValueError, match="val_fraction"):
        sound(**options(folder, tmp_path / "run", val_fraction=0))
    with pytest.raises(ValueError, match="floor_steps"):
        sound(**options(folder, tmp_path / "run", floor_steps=-1))


def test_a_tone_is_a_line_in_the_spectrogram() -> None:
    rate = 8000
    frames = spectrogram(torch.sin(2 * torch.pi * 1000 * torch.arange(4000) / rate), rate)
    assert frames.max() == 0
    assert (frames.argmax(1).double() / (frames.shape[1] - 1) * rate / 2 - 1000).abs().max() < 50
