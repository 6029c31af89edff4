"""The transformers bridge: Auto classes, generate in every form, loss, packing, and folders that either side reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import statescan as ss
from statescan.interop import from_pretrained, save_pretrained

transformers = pytest.importorskip("transformers")

from statescan.interop import transformers_bridge as bridge  # noqa: E402 - after the skip

TINY = ["mamba-tiny", "mamba2-tiny"]
LENGTHS = (9, 1, 5)


@pytest.fixture(scope="module", params=TINY)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    model = ss.create_model(request.param).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return model


@pytest.fixture(scope="module")
def wrapped(model: Any) -> Any:
    return bridge.wrap(model)


def ids(length: int, rows: int = 1, seed: int = 1) -> Tensor:
    return torch.randint(1, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def ragged(side: str) -> tuple[Tensor, Tensor]:
    width = max(LENGTHS)
    rows, mask = torch.zeros(len(LENGTHS), width, dtype=torch.long), torch.zeros(len(LENGTHS), width, dtype=torch.long)
    for i, length in enumerate(LENGTHS):
        where = slice(width - length, width) if side == "left" else slice(0, length)
        rows[i, where], mask[i, where] = ids(length, seed=i)[0], 1
    return rows, mask


@torch.no_grad()
def greedy(model: Any, row: Tensor, count: int) -> list[int]:
    """Our own loop, without a cache: the whole row again for every token."""
    for _ in range(count):
        row = torch.cat([row, model(row[None])[0, -1].argmax()[None]])
    return row[-count:].tolist()


# -- calls ------------------------------------------------------------------------------------------------------------------


def test_logits_and_cache(model: Any, wrapped: Any) -> None:
    rows = ids(11, rows=2)
    expected = model(rows)
    output = wrapped(rows)
    assert torch.equal(output.logits, expected)
    torch.testing.assert_close(wrapped(rows, logits_to_keep=1).logits, expected[:, -1:])
    torch.testing.assert_close(wrapped(rows, logits_to_keep=3).logits, expected[:, -3:])
    torch.testing.assert_close(wrapped(rows, logits_to_keep=torch.tensor([0, 4])).logits, expected[:, [0, 4]])
    first = wrapped(rows[:, :4])
    assert first.past_key_values.get_seq_length() == 4
    second = wrapped(rows[:, 4:], past_key_values=first.past_key_values)
    torch.testing.assert_close(second.logits, expected[:, 4:], atol=1e-5, rtol=0)
    assert second.past_key_values.get_seq_length() == 11
    assert wrapped(rows, use_cache=False).past_key_values is None
    assert isinstance(wrapped(rows, return_dict=False)[0], Tensor)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_attention_mask_says_what_exists(model: Any, wrapped: Any, side: str) -> None:
    rows, mask = ragged(side)
    output = wrapped(rows, attention_mask=mask)
    last = wrapped(rows, attention_mask=mask, logits_to_keep=1).logits
    for i in range(len(LENGTHS)):
        alone = model(rows[i, mask[i].bool()][None])[0]
        torch.testing.assert_close(output.logits[i, mask[i].bool()], alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(last[i, 0], alone[-1], atol=1e-5, rtol=0)


def test_positions_that_restart_separate_packed_documents(model: Any, wrapped: Any) -> None:
    documents = [ids(n, seed=n)[0] for n in (4, 1, 6)]
    positions = torch.cat([torch.arange(len(d)) for d in documents])[None]
    logits = wrapped(torch.cat(documents)[None], position_ids=positions).logits[0]
    torch.testing.assert_close(logits, torch.cat([model(d[None])[0] for d in documents]), atol=1e-5, rtol=0)


def test_the_loss_is_ours(model: Any, wrapped: Any) -> None:
    rows = ids(11, rows=2)
    labels = rows.clone()
    labels[0, :4] = -100
    loss = wrapped(rows, labels=labels).loss
    torch.testing.assert_close(loss, model.loss(model(rows)[:, :-1], labels[:, 1:]))
    torch.testing.assert_close(wrapped(rows, labels=labels, num_items_in_batch=32).loss, loss * 17 / 32)  # 7 + 10 targets


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"attention_mask": torch.ones(2, 3)}, "attention_mask must have shape"),
        ({"output_hidden_states": True}, "takes ids and gives logits"),
        ({"inputs_embeds": torch.zeros(2, 5, 32)}, "takes ids and gives logits"),
        ({"past_key_values": object()}, "must be a StatescanCache; got a object"),
    ],
)
def test_wrong_arguments(wrapped: Any, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrapped(ids(5, rows=2), **inputs)


def test_gradient_checkpointing_changes_no_gradient(model: Any) -> None:
    wrapped = bridge.wrap(model).train()
    rows = ids(7, rows=2)
    gradients = []
    for enable in (wrapped.activation_checkpointing_disable, wrapped.activation_checkpointing_enable):
        enable()
        wrapped.zero_grad()
        wrapped(rows, labels=rows).loss.backward()
        gradients.append([p.grad.clone() for p in wrapped.parameters()])
    wrapped.activation_checkpointing_disable()
    wrapped.zero_grad()
    model.eval()
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


# -- generate ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy(model: Any, wrapped: Any, use_cache: bool) -> None:
    rows = ids(7, rows=2)
    output = wrapped.generate(rows, max_new_tokens=8, do_sample=False, use_cache=use_cache)
    assert output[:, 7:].tolist() == [greedy(model, row, 8) for row in rows]


# In the last chunk of a right-padded batch the shorter rows have no token, so it cannot say what follows them.
@pytest.mark.parametrize(("side", "chunk"), [("left", None), ("left", 4), ("right", None)])
def test_greedy_on_a_ragged_batch(model: Any, wrapped: Any, side: str, chunk: int | None) -> None:
    rows, mask = ragged(side)
    output = wrapped.generate(rows, attention_mask=mask, max_new_tokens=6, do_sample=False, prefill_chunk_size=chunk, pad_token_id=0)
    for i in range(len(LENGTHS)):
        assert output[i, rows.shape[1] :].tolist() == greedy(model, rows[i, mask[i].bool()], 6)


def test_greedy_equals_our_own_generate(model: Any, wrapped: Any) -> None:
    from statescan.procedures.generate import generate

    rows = ids(7, rows=2)
    ours = generate(model, rows, max_new_tokens=8, temperature=0)
    assert wrapped.generate(rows, max_new_tokens=8, do_sample=False)[:, 7:].tolist() == ours.tolist()


def test_sampling_draws_from_the_same_distribution(model: Any, wrapped: Any) -> None:
    """With a cache and without it, the same seed draws the same tokens."""
    rows = ids(7, rows=3)
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        drawn.append(wrapped.generate(rows, max_new_tokens=8, do_sample=True, temperature=0.8, top_k=20, top_p=0.9, use_cache=use_cache))
    assert drawn[0].tolist() == drawn[1].tolist()
    assert drawn[0][:, 7:].tolist() != [greedy(model, row, 8) for row in rows]


@pytest.mark.parametrize("padded", [False, True])
def test_beam_search_reorders_the_state(wrapped: Any, padded: bool) -> None:
    """Beams with a cache equal beams that read everything again; and the best beams do change places."""
    rows, mask = ragged("left") if padded else (ids(7, rows=2), torch.ones(2, 7, dtype=torch.long))
    options = {
        "attention_mask": mask,
        "max_new_tokens": 8,
        "num_beams": 4,
        "num_return_sequences": 2,
        "do_sample": False,
        "pad_token_id": 0,
    }
    orders = []
    original = bridge.StatescanCache.reorder_cache
    try:
        bridge.StatescanCache.reorder_cache = lambda self, beam_idx: (orders.append(beam_idx.tolist()), original(self, beam_idx))[1]
        cached = wrapped.generate(rows, use_cache=True, **options)
    finally:
        bridge.StatescanCache.reorder_cache = original
    assert any(order != sorted(order) or len(set(order)) < len(order) for order in orders)
    assert cached.tolist() == wrapped.generate(rows, use_cache=False, **options).tolist()


def test_a_conversation_goes_on_from_its_cache(model: Any, wrapped: Any) -> None:
    """The second turn reads only what is new."""
    first = wrapped.generate(ids(7), max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert first.past_key_values.get_seq_length() == 10  # the last new token has not been read
    turn = torch.cat([first.sequences, ids(3, seed=5)], dim=1)
    read = []
    handle = wrapped.model.register_forward_pre_hook(lambda module, arguments: read.append(arguments[0].shape[1]))
    second = wrapped.generate(turn, past_key_values=first.past_key_values, max_new_tokens=4, do_sample=False)
    handle.remove()
    assert read == [4, 1, 1, 1]
    assert second[0, turn.shape[1] :].tolist() == greedy(model, turn[0], 4)


def test_an_end_token_and_streaming(model: Any, wrapped: Any) -> None:
    row = ids(7)[0]
    expected = greedy(model, row, 8)
    end = expected[3]
    stop = expected.index(end)

    class Collector:
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.tokens.append(-1)

    streamer = Collector()
    output = wrapped.generate(row[None], max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=0, streamer=streamer)
    assert output[0, 7:].tolist() == expected[: stop + 1]
    assert streamer.tokens == [*row.tolist(), *expected[: stop + 1], -1]


def test_what_a_state_cannot_do_is_refused(wrapped: Any) -> None:
    with pytest.raises(ValueError, match="not supported with stateful models"):
        wrapped.generate(ids(5), max_new_tokens=3, assistant_model=wrapped)
    with pytest.raises(ValueError, match="the state has one form"):
        wrapped.generate(ids(5), max_new_tokens=3, cache_implementation="static")
    cache = wrapped(ids(5)).past_key_values
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="cannot be rolled back"):
        cache.activate_past_recording()


def test_cache_rows() -> None:
    model = ss.create_model("mamba-tiny").eval()
    _, state = model.scan(ids(5, rows=3))
    cache = bridge.StatescanCache(state, 5)
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 6
    assert torch.equal(cache.state.layers[1].ssm[4], state.layers[1].ssm[2])
    cache.batch_select_indices(torch.tensor([5, 0]))
    assert torch.equal(cache.state.layers[0].conv, state.layers[0].conv[[2, 0]])
    cache.reset()
    assert (cache.get_seq_length(), cache.batch_size, len(cache)) == (0, 0, 0)


# -- folders ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def registered() -> None:
    bridge.register()
    bridge.register()  # twice does no harm


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.usefixtures("registered")
def test_auto_classes_read_our_folders(tmp_path: Path, tied: bool) -> None:
    torch.manual_seed(0)
    model = ss.create_model("mamba2-tiny", tie_embeddings=tied).eval()
    save_pretrained(model, tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.vocab_size, config.hidden_size, config.tie_word_embeddings) == (61, 32, tied)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is bridge.StatescanForCausalLM
    assert (again.model.lm_head.weight is again.model.backbone.embedding.weight) == tied
    assert torch.equal(again(ids(9)).logits, model(ids(9)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.usefixtures("registered")
def test_folders_of_the_bridge_are_read_by_both(tmp_path: Path, tied: bool) -> None:
    torch.manual_seed(0)
    model = ss.create_model("mamba-tiny", tie_embeddings=tied).eval()
    bridge.wrap(model).save_pretrained(tmp_path)
    expected = model(ids(9))
    assert torch.equal(transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(ids(9)).logits, expected)
    ours = from_pretrained(tmp_path)
    assert torch.equal(ours(ids(9)), expected)
    assert ss.Spec.of(ours).resolved() == ss.Spec.of(model).resolved()


@pytest.mark.usefixtures("registered")
def test_a_model_from_a_config_is_initialised_by_us() -> None:
    torch.manual_seed(0)
    config = bridge.StatescanConfig(model=ss.Spec.of(ss.create_model("mamba-tiny")).to_dict())
    model = transformers.AutoModelForCausalLM.from_config(config)
    mixer = model.model.backbone.layers[0].mixer
    torch.testing.assert_close(mixer.A_log[0], torch.arange(1, 9).float().log())
    assert bool((torch.nn.functional.softplus(mixer.dt_proj.bias) < 0.11).all())


@pytest.mark.usefixtures("registered")
def test_a_wrong_checkpoint_is_an_error_not_a_warning(tmp_path: Path) -> None:
    save_pretrained(ss.create_model("mamba-tiny"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["backbone.extra"] = tensors.pop("backbone.layers.0.mixer.D")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing: model\.backbone\.layers\.0\.mixer\.D; 1 surprising: .*backbone\.extra"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_wrapping_shares_the_weights(model: Any, wrapped: Any) -> None:
    assert wrapped.model is model
    assert wrapped.get_input_embeddings() is model.backbone.embedding
    assert wrapped.get_output_embeddings() is model.lm_head
    assert wrapped.num_parameters() == sum(p.numel() for p in model.parameters())
