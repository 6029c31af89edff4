"""Model level: prefill, decode and a training step of the mamba-130m shape, beside transformers in the same run."""

from __future__ import annotations

from typing import Any

import torch

import statescan as ss
from benchmarks.timing import Timing, interleaved, matmul_rate, read_rate

Row = dict[str, Any]


def pair(layers: int, hidden: int) -> tuple[Any, Any]:
    """Our model and transformers' with the same random weights; raises if their logits differ by more than 1e-3 of the largest."""
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    ours = ss.create_model("mamba-130m", layers=f"M*{layers}", d_model=hidden).eval()
    theirs = MambaForCausalLM(MambaConfig(hidden_size=hidden, num_hidden_layers=layers, vocab_size=50280, tie_word_embeddings=True)).eval()
    renamed = {name.replace("backbone.embedding.", "backbone.embeddings."): value for name, value in ours.state_dict().items()}
    missing, surprising = theirs.load_state_dict(renamed, strict=False)
    assert not surprising, surprising
    assert all("lm_head" in name for name in missing), missing
    theirs.tie_weights()
    ids = torch.randint(0, 50280, (1, 33))
    with torch.no_grad():
        a, b = ours(ids), theirs(ids).logits
    worst = (a - b).abs().max() / b.abs().max()
    assert worst < 1e-3, f"the models disagree by {worst:.1e} of the largest logit: no timing is reported on a failing check"
    return ours, theirs


def run(quick: bool) -> list[Row]:
    """Rows of the table: what, ours and theirs in tokens a second, their ratio, the share of the limit."""
    layers, hidden = (4, 768) if quick else (24, 768)
    ours, theirs = pair(layers, hidden)
    rate, bandwidth = matmul_rate(), read_rate()
    matrices = sum(m.weight.numel() for m in ours.backbone.modules() if isinstance(m, torch.nn.Linear))
    head = ours.lm_head.weight.numel()
    rows = []

    ids = torch.randint(0, 50280, (1, 512))
    with torch.inference_mode():
        timing = interleaved(
            {
                "ours": lambda: ours(ids, logits_at="last"),
                "theirs": lambda: theirs(ids, logits_to_keep=1, use_cache=False),
            },
            repeats=3 if quick else 7,
        )
    limit = (2 * matrices * 512 + 2 * head) / rate
    rows.append(row("prefill of 512 tokens, B=1", 512, timing, limit))

    with torch.inference_mode():
        _, state = ours.scan(ids[:, :16])
        cache = theirs(ids[:, :16], use_cache=True).cache_params
        token = ids[:, 16]

        def our_steps() -> None:
            s = state
            for _ in range(8):
                _, s = ours.step(token, s)

        def their_steps() -> None:
            for _ in range(8):
                theirs(token[:, None], cache_params=cache, use_cache=True)

        timing = interleaved({"ours": our_steps, "theirs": their_steps}, repeats=3 if quick else 7)
    rows.append(row("decode, B=1", 8, timing, 8 * 4 * (matrices + head) / bandwidth))

    train = torch.randint(0, 50280, (1, 256))

    def our_training_step() -> None:
        logits = ours(train)
        ours.loss(logits[:, :-1], train[:, 1:]).backward()
        ours.zero_grad(set_to_none=True)

    def their_training_step() -> None:
        theirs(train, labels=train, use_cache=False).loss.backward()
        theirs.zero_grad(set_to_none=True)

    ours.train(), theirs.train()
    timing = interleaved({"ours": our_training_step, "theirs": their_training_step}, repeats=3, budget=1.0)
    rows.append(row("training step, B=1, L=256", 256, timing, 6 * (matrices + head) * 256 / rate))
    return rows


def row(what: str, tokens: int, timing: dict[str, Timing], limit: float) -> Row:
    """One line of the table; ``limit`` is the least time in seconds that the machine needs."""
    ours, theirs = timing["ours"], timing["theirs"]
    return {
        "what": what,
        "statescan": tokens / ours.median,
        "statescan spread": f"{tokens / ours.high:.1f}..{tokens / ours.low:.1f}",
        "transformers": tokens / theirs.median,
        "transformers spread": f"{tokens / theirs.high:.1f}..{tokens / theirs.low:.1f}",
        "ratio": theirs.median / ours.median,
        "share of the limit": limit / ours.median,
        "repeats": ours.repeats,
    }
