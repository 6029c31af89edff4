"""``statescan generate``: continue a prompt, of text or of sound."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

_OF_SOUND = ("model", "prompt_file", "temperature", "seed", "num_return_sequences", "device", "seconds", "out")


def run(
    model: str,
    prompt: str | None = None,
    *,
    prompt_file: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop_strings: list[str] | str | None = None,
    seed: int | None = None,
    num_return_sequences: int = 1,
    load_state: str | None = None,
    save_state: str | None = None,
    echo: bool = False,
    chunk_size: int = 1024,
    device: str | None = None,
    seconds: float | None = None,
    out: str | None = None,
) -> None:
    """Continue a prompt; the continuation goes to standard output as it is written.

    A model of sound writes a wav file instead. It takes prompt_file, temperature, seed, num_return_sequences, seconds and out.

    Args:
        model: a run folder, a model folder, or the id of a repository on the Hugging Face hub
        prompt: the text to continue
        prompt_file: a UTF-8 file to continue; - is standard input. Of sound, a wav file, which the result begins with
        max_new_tokens: at most so many tokens
        temperature: 0 takes the likeliest token
        top_k: draw from the k likeliest tokens
        top_p: draw from the likeliest tokens that make up this probability
        min_p: draw from tokens at least so many times as likely as the likeliest
        repetition_penalty: above 1 makes tokens that have occurred less likely
        stop_strings: end before one of these; --stop_strings+=TEXT adds one
        seed: the same seed gives the same text
        num_return_sequences: several continuations of one reading of the prompt
        load_state: a file written by --save_state, which is continued (by the prompt, if there is one)
        save_state: keep what the model knows after the continuation
        echo: write the prompt too
        chunk_size: positions read at once; memory grows with it, not with the prompt
        device: cpu, cuda
        seconds: of sound (2 by default)
        out: the wav file (sample.wav by default); several are numbered
    """
    options = dict(locals())
    from statescan import state as states
    from statescan.cli.inputs import load_model, read_prompt
    from statescan.heads.sound import SoundModel
    from statescan.procedures.generate import generate
    from statescan.procedures.sound_generate import write_sound

    net = load_model(model, device)
    if isinstance(net, SoundModel):
        _refuse_text(options)
        print(write_sound(net, out, seconds, prompt_file, temperature, seed, num_return_sequences))
        return
    if seconds is not None or out is not None:
        raise ValueError(f"seconds and out are for models of sound; {model} is a model of text")
    text = read_prompt(prompt, prompt_file, needed=load_state is None)
    before = None if load_state is None else states.load(load_state)
    if num_return_sequences > 1 and save_state is not None:
        raise ValueError("save_state keeps one continuation: leave num_return_sequences at 1")
    if echo and text is not None:
        print(text, end="", flush=True)
    pieces = generate(
        net,
        text,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop_strings=stop_strings or (),
        seed=seed,
        num_return_sequences=num_return_sequences,
        state=before,
        stream=num_return_sequences == 1,
        return_state=save_state is not None,
        chunk_size=chunk_size,
    )
    for number, piece in enumerate(pieces, 1):
        print(piece if num_return_sequences == 1 else f"--- {number}\n{piece}\n", end="", flush=True)
    print()
    if save_state is not None:
        states.save(pieces.state, save_state)


def _refuse_text(options: Mapping[str, Any]) -> None:
    """An option that a model of sound would pass over is a mistake."""
    for name, parameter in inspect.signature(run).parameters.items():
        if name not in _OF_SOUND and options[name] != parameter.default:
            raise ValueError(f"{options['model']} is a model of sound, which takes {', '.join(_OF_SOUND[1:])}, not {name}")
