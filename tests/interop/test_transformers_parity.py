"""Our models compute what transformers computes: the oracle is its full, unpadded forward of each row, without a cache."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers_cases import CASES, RESPELLED, VOCAB

import statescan as ss
from statescan.interop import export_pretrained, from_pretrained

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
MAMBAS = [name for name in CASES if name.split("-")[0] in ("mamba", "mamba2")]
"""Their tensors are named like ours, and their cache holds what our state holds."""


class Pair(NamedTuple):
    theirs: Any
    ours: Any
    folder: Path


def make(name: str) -> Any:
    """A transformers model with random weights: matrices that do not swell what they multiply, noise on everything else. With 0.2 at any
    width mamba-full-width was so ill-conditioned that in float32 either side lay 1e-3 from its own result in float64.
    """
    kind = name.split("-")[0]
    config = transformers.AutoConfig.for_model(kind, **{"vocab_size": VOCAB, "num_hidden_layers": 2, **CASES[name]})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=min(0.2, parameter.shape[-1] ** -0.5))
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name in model.state_dict() and "bias" in name:  # of experts, added for the choice
                buffer.normal_(std=0.2)
    return model


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    theirs = make(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return Pair(theirs, from_pretrained(folder), folder)


def ids(length: int, rows: int = 1, seed: int = 1) -> Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def oracle(theirs: Any, row: Tensor) -> Tensor:
    """Logits (L, V) of one row (L,)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return theirs(row[None], use_cache=False).logits[0]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def close_to_scale(got: Tensor, expected: Tensor, what: str) -> None:
    """States and gradients have no unit of their own: 1e-4 of the largest entry (of 1, if that is larger)."""
    scale = expected.abs().max().clamp(min=1.0)
    torch.testing.assert_close(got / scale, expected / scale, atol=TOLERANCE, rtol=0, msg=lambda message: f"{what}: {message}")


@torch.no_grad()
def test_whole(pair: Pair) -> None:
    for length in (1, 2, 19):
        rows = ids(length, rows=2, seed=length)
        close(pair.ours(rows), torch.stack([oracle(pair.theirs, row) for row in rows]))


@torch.no_grad()
@pytest.mark.parametrize("borders", [[1], [18], [9], [2, 3, 10], [5, 6, 7, 8]])
def test_chunks_split_anywhere(pair: Pair, borders: list[int]) -> None:
    rows = ids(19, rows=2)
    state, pieces = None, []
    for piece in rows.tensor_split(borders, dim=1):
        logits, state = pair.ours.scan(piece, state)
        pieces.append(logits)
    close(torch.cat(pieces, dim=1), torch.stack([oracle(pair.theirs, row) for row in rows]))


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["reference", "portable"])
def test_every_implementation(pair: Pair, implementation: str) -> None:
    """The other tests run what dispatch chooses: the compiled kernels where there are any."""
    rows = ids(19, rows=2)
    with ss.implementation(implementation):
        first, state = pair.ours.scan(rows[:, :12])
        second, _ = pair.ours.scan(rows[:, 12:], state)
    close(torch.cat([first, second], dim=1), torch.stack([oracle(pair.theirs, row) for row in rows]))


@torch.no_grad()
def test_prefill_and_twelve_steps(pair: Pair) -> None:
    rows = ids(19, rows=2)
    expected = torch.stack([oracle(pair.theirs, row) for row in rows])
    last, state = pair.ours.scan(rows[:, :7], logits_at="last")
    close(last, expected[:, 6])
    for t in range(7, 19):
        logits, state = pair.ours.step(rows[:, t], state)
        close(logits, expected[:, t])


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows(pair: Pair, side: str) -> None:
    lengths, width = (19, 1, 2, 11), 19
    rows = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for i, length in enumerate(lengths):
        where = slice(width - length, width) if side == "left" else slice(0, length)
        rows[i, where], mask[i, where] = ids(length, seed=i)[0], True
    logits, state = pair.ours.scan(rows, timeline=ss.Timeline.padded(mask))
    following = ids(1, rows=len(lengths), seed=9)[:, 0]
    after, _ = pair.ours.step(following, state)
    for i in range(len(lengths)):
        close(logits[i, mask[i]], oracle(pair.theirs, rows[i, mask[i]]))
        close(after[i], oracle(pair.theirs, torch.cat([rows[i, mask[i]], following[i : i + 1]]))[-1])


@torch.no_grad()
def test_packed_documents(pair: Pair) -> None:
    lengths = [5, 1, 9, 4]
    row = ids(sum(lengths))
    logits = pair.ours(row, ss.Timeline.packed(lengths))
    close(logits[0], torch.cat([oracle(pair.theirs, document) for document in row[0].split(lengths)]))


@torch.no_grad()
@pytest.mark.parametrize("pair", MAMBAS, indirect=True)
def test_state_is_what_the_other_cache_holds(pair: Pair) -> None:
    """After one prefill (where its cache is right): the same convolution tail and the same recurrent state."""
    rows = ids(13, rows=2)
    cache = pair.theirs(rows, use_cache=True).cache_params
    _, state = pair.ours.scan(rows)
    for i, layer in enumerate(state.layers):
        taps = layer.conv.shape[1]
        close_to_scale(layer.conv, cache.get_conv_state(i)[..., -taps:].transpose(1, 2), f"convolution of layer {i}")
        close_to_scale(layer.ssm, cache.get_recurrent_state(i), f"state of layer {i}")


@pytest.mark.parametrize("pair", MAMBAS, indirect=True)
def test_gradients_of_the_loss(pair: Pair) -> None:
    rows = ids(11, rows=2)
    expected = pair.theirs(rows, labels=rows, use_cache=False).loss
    logits = pair.ours(rows)
    got = pair.ours.loss(logits[:, :-1], rows[:, 1:])
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
    pair.theirs.zero_grad()
    pair.ours.zero_grad()
    expected.backward()
    got.backward()
    theirs = {name.replace("embeddings", "embedding"): p.grad for name, p in pair.theirs.named_parameters()}
    for name, parameter in pair.ours.named_parameters():
        assert parameter.grad is not None
        close_to_scale(parameter.grad, theirs[name], f"gradient of {name}")


def test_the_export_is_what_was_read(pair: Pair, tmp_path: Path) -> None:
    """The same file contents tensor by tensor; transformers reads it as the same model, and misses nothing."""
    export_pretrained(pair.ours, tmp_path)
    original, exported = (load_file(folder / "model.safetensors") for folder in (pair.folder, tmp_path))
    assert original.keys() == exported.keys()
    assert all(original[name].numpy().tobytes() == exported[name].numpy().tobytes() for name in original)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ignored = {"_name_or_path", "bos_token_id", "eos_token_id", "pad_token_id", "dtype"}
    ignored |= RESPELLED.get(pair.theirs.config.model_type, set())
    before, after = ({k: v for k, v in model.config.to_dict().items() if k not in ignored} for model in (pair.theirs, again))
    assert before == after
    for model in (pair.theirs, again):  # products round by how their operands lie in memory, and loaded ones lie as in the file
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    rows = ids(9)
    torch.testing.assert_close(oracle(again, rows[0]), oracle(pair.theirs, rows[0]), atol=0, rtol=0)


@pytest.mark.parametrize("pair", MAMBAS, indirect=True)
def test_every_weight_arrived(pair: Pair) -> None:
    theirs = {name.replace("embeddings", "embedding"): tensor for name, tensor in pair.theirs.state_dict().items()}
    ours = pair.ours.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
