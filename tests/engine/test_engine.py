"""The engine equals the model's own step: logits and every state, for plain modules read and for others called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

import statescan as ss
from statescan.ops import native_gate as gate

pytestmark = pytest.mark.skipif(gate.module is None, reason=f"the kernels are absent: {gate.unavailable}")

PARTS: dict[str, ss.Spec] = {
    "mamba": ss.Spec("Mamba", d_state=8),
    "mamba odd": ss.Spec("Mamba", d_state=5, d_conv=1, expand=1.5, bias=True, conv_bias=False),
    "mamba wide state": ss.Spec("Mamba", d_state=16, d_conv=3, dt_rank=7),
    "mamba2": ss.Spec("Mamba2", d_state=16, headdim=6, ngroups=2),
    "mamba2 odd": ss.Spec("Mamba2", d_state=7, headdim=6, d_conv=3, D_has_hdim=True, rmsnorm=False, bias=True),
    "mamba2 mlp": ss.Spec("Mamba2", d_state=5, headdim=4, d_ssm=28, norm_before_gate=True, dt_limit=(0.01, 0.05)),
}


def model(part: ss.Spec, layers: str = "M*3", d_model: int = 18, **parts: ss.Spec) -> ss.LanguageModel:
    """A language model of an odd width and vocabulary, with weights that are not all near zero."""
    torch.manual_seed(0)
    made = ss.LanguageModel(67, d_model, layers, {"M": part, **parts}, tie_embeddings=False).eval()
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim > 1:
                p.mul_(2)
    return made


def start(made: ss.LanguageModel, batch: int) -> tuple[torch.Tensor, Any]:
    """The next token and a state after some."""
    ids = torch.randint(0, 67, (batch, 6))
    with torch.no_grad():
        return ids[:, -1], made.scan(ids[:, :-1])[1]


def assert_same(made: ss.LanguageModel, engine: ss.Engine, batch: int, rtol: float = 1e-5, steps: int = 3) -> None:
    """A few steps of the engine and of the model from the same state."""
    token, state = start(made, batch)
    ours = theirs = state
    for _ in range(steps):
        with torch.no_grad():
            expected, theirs = made.step(token, theirs)
        got, ours = engine.step(token, ours)
        pairs = zip([expected, *pytree.tree_leaves(theirs)], [got, *pytree.tree_leaves(ours)], strict=True)
        for a, b in pairs:
            assert b.dtype == torch.float32
            torch.testing.assert_close(b, a.float(), rtol=rtol, atol=rtol * float(a.abs().max()) if a.numel() else 0)
        assert type(ours.layers[0]) is type(theirs.layers[0])
        token = expected.argmax(-1)


@pytest.fixture
def poisoned() -> Any:
    """Memory that nobody has written holds NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize(
    ("options", "called"),
    [
        ({}, set()),
        ({"norm": "rms_offset", "logit_scale": 0.3, "logit_cap": 2.0, "head_bias": True}, set()),
        ({"embedding_scale": 3.0}, set()),
        ({"embedding_norm": True}, set()),
        ({"residual_scale": 0.5}, {f"layer {i}" for i in range(4)}),
        ({"norm": "layer"}, set()),
    ],
)
def test_what_hybrids_scale_cap_and_normalise(options: dict[str, Any], called: set[str], poisoned: None) -> None:
    torch.manual_seed(0)
    parts = {"M": PARTS["mamba2"], "F": ss.Spec("GatedMLP", d_ff=13, bias=True)}
    made = ss.LanguageModel(67, 18, "(MF)*2", parts, tie_embeddings=False, **options).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn_like(p))
    engine = ss.Engine(made)
    assert engine.called.keys() == called
    assert_same(made, engine, 3)


@pytest.mark.parametrize("batch", [1, 2, 5, 16])
@pytest.mark.parametrize("name", PARTS)
def test_equals_the_model(name: str, batch: int, poisoned: None) -> None:
    made = model(PARTS[name])
    engine = ss.Engine(made)
    assert not engine.called
    assert_same(made, engine, batch)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", ["mamba wide state", "mamba2"])
def test_every_instruction_set(name: str) -> None:
    made = model(PARTS[name])
    assert_same(made, ss.Engine(made), 3)


@pytest.mark.parametrize("kind", [None, "int8", "int4"])
@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_bits_depend_neither_on_threads_nor_on_neighbours(name: str, kind: Any, on_threads: Callable[[int], None]) -> None:
    made = model(PARTS[name], d_model=66)
    if kind is not None:
        ss.quantize(made, kind)
    engine = ss.Engine(made)
    token, state = start(made, 7)
    results = []
    for threads in (1, 2, 3, 8):
        on_threads(threads)
        results.append(pytree.tree_leaves(engine.step(token, state)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    alone = pytree.tree_leaves(engine.step(token[4:5], ss.state.select(state, [4])))
    assert all(torch.equal(a[4:5], b) for a, b in zip(results[0], alone, strict=True))


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_bfloat16_weights_are_read_exactly(name: str) -> None:
    """Equal to the float32 model of the same rounded weights: activations stay float32."""
    made = model(PARTS[name]).to(torch.bfloat16)
    rounded = model(PARTS[name])
    rounded.load_state_dict({k: v.float() for k, v in made.state_dict().items()})
    token, state = start(rounded, 4)
    with torch.no_grad():
        expected, _ = rounded.step(token, state)
    got, _ = ss.Engine(made).step(token, state)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", PARTS)
def test_quantised_weights(name: str, kind: Any, poisoned: None) -> None:
    """The same kernel reads them from the engine and from the layer."""
    made = model(PARTS[name])
    ss.quantize(made, kind)
    engine = ss.Engine(made)
    assert not engine.called
    for batch in (1, 5):
        assert_same(made, engine, batch, rtol=2e-4)  # activations are rounded to 15 bits: a last bit may tip one over


def test_inplace_writes_over_the_state() -> None:
    made = model(PARTS["mamba2"])
    engine = ss.Engine(made)
    token, state = start(made, 2)
    expected, after = engine.step(token, state)
    addresses = [t.data_ptr() for t in pytree.tree_leaves(state)]
    got, over = engine.step(token, state, inplace=True)
    assert torch.equal(got, expected)
    assert [t.data_ptr() for t in pytree.tree_leaves(over)] == addresses
    assert all(torch.equal(a, b) for a, b in zip(pytree.tree_leaves(over), pytree.tree_leaves(after), strict=True))


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_states_that_a_step_in_place_has_left(name: str) -> None:
    """They are not looked at twice; others in their place are."""
    made = model(PARTS[name])
    engine = ss.Engine(made)
    token, state = start(made, 2)
    _, state = engine.step(token, state, inplace=True)
    copy = pytree.tree_map(torch.clone, state)
    expected, _ = engine.step(token, copy)
    for t in pytree.tree_leaves(state):  # moved, as .to() moves a tensor
        t.data = t.data.clone()
    got, state = engine.step(token, state, inplace=True)
    assert torch.equal(got, expected)
    with pytest.raises(ValueError, match="the state of layer 0 has shapes"):
        engine.step(torch.zeros(3, dtype=torch.long), state, inplace=True)
    swapped = state._replace(layers=(state.layers[1], state.layers[0], *state.layers[2:]))
    expected, _ = engine.step(token, pytree.tree_map(torch.clone, swapped))
    assert torch.equal(engine.step(token, swapped, inplace=True)[0], expected)
    kept = pytree.tree_map(torch.clone, swapped)
    assert torch.equal(engine.step(token, kept)[0], engine.step(token, kept, inplace=True)[0])  # without inplace nothing is written


# -- what is not plain is called ------------------------------------------------------------------------------------------------


class Doubled(nn.Linear):
    """A Linear that is more than its weight."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class Halved(nn.Module):
    """A parametrisation."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


def _subclass(made: ss.LanguageModel) -> None:
    old = made.backbone.layers[1].mixer.in_proj
    new = Doubled(old.in_features, old.out_features, bias=False)
    new.load_state_dict(old.state_dict())
    made.backbone.layers[1].mixer.in_proj = new


def _hook(made: ss.LanguageModel) -> None:
    made.backbone.layers[1].mixer.out_proj.register_forward_hook(lambda module, args, output: output + 1)


def _parametrised(made: ss.LanguageModel) -> None:
    parametrize.register_parametrization(made.backbone.layers[1].mixer.x_proj, "weight", Halved())


def _replaced(made: ss.LanguageModel) -> None:
    mixer = made.backbone.layers[1].mixer
    mixer.dt_proj.forward = lambda x, old=mixer.dt_proj.forward: old(x) + 0.5


@pytest.mark.parametrize("change", [_subclass, _hook, _parametrised, _replaced])
def test_what_is_not_plain_is_called(change: Any) -> None:
    made = model(PARTS["mamba"])
    plain, _ = ss.Engine(made).step(*start(made, 2))
    change(made)
    engine = ss.Engine(made)
    assert list(engine.called) == ["layer 1"]
    assert "layer 1 is called" in repr(engine)
    assert_same(made, engine, 2)
    torch.manual_seed(0)
    assert not torch.allclose(engine.step(*start(made, 2))[0], plain)


def test_a_mixer_without_a_native_step_is_called() -> None:
    made = model(PARTS["mamba2"], "MSM", S=ss.Spec("S4D", d_state=4))
    engine = ss.Engine(made)
    assert "S4D" in engine.called["layer 1"]
    assert_same(made, engine, 3)


def test_weights_made_in_inference_mode_are_called() -> None:
    with torch.inference_mode():
        made = model(PARTS["mamba"])
    assert "inference mode" in ss.Engine(made).called["layer 0"]


def test_a_head_with_a_hook_is_called() -> None:
    made = model(PARTS["mamba"])
    made.lm_head.register_forward_hook(lambda module, args, output: output * 3)
    engine = ss.Engine(made)
    assert list(engine.called) == ["head"]
    assert_same(made, engine, 2)


# -- faults -------------------------------------------------------------------------------------------------------------------------


def _in_place(made: ss.LanguageModel) -> None:
    with torch.no_grad():
        made.backbone.layers[2].mixer.A_log.add_(1)


def _new_parameter(made: ss.LanguageModel) -> None:
    made.lm_head.weight = nn.Parameter(torch.zeros_like(made.lm_head.weight))


def _new_storage(made: ss.LanguageModel) -> None:
    made.backbone.norm_f.weight.data = torch.zeros_like(made.backbone.norm_f.weight)


@pytest.mark.parametrize("change", [_in_place, _new_parameter, _new_storage])
def test_a_changed_weight_raises(change: Any) -> None:
    made = model(PARTS["mamba"])
    engine = ss.Engine(made)
    token, state = start(made, 1)
    engine.step(token, state)
    change(made)
    with pytest.raises(RuntimeError, match="make a new Engine"):
        engine.step(token, state)


def test_bad_input() -> None:
    made = model(PARTS["mamba"])
    engine = ss.Engine(made)
    token, state = start(made, 2)
    with pytest.raises(ValueError, match=r"token id 67 lies outside the vocabulary of 67"):
        engine.step(torch.tensor([3, 67]), state)
    with pytest.raises(ValueError, match="token id -1 lies outside"):
        engine.step(torch.tensor([-1, 3]), state)
    with pytest.raises(ValueError, match=r"shape \(batch,\)"):
        engine.step(token[:, None], state)
    with pytest.raises(ValueError, match="layer 0 has shapes"):
        engine.step(token[:1], state)
    with pytest.raises(ValueError, match="takes a LanguageModel"):
        ss.Engine(made.backbone)  # type: ignore[arg-type]
    other = model(PARTS["mamba2"])
    with pytest.raises(ValueError, match="layer 0 has shapes"):
        engine.step(token, other.init_state(2))


def test_generate_uses_it_and_says_the_same() -> None:
    made = model(PARTS["mamba2"])
    plain = model(PARTS["mamba2"])
    plain.backbone.layers[0].register_forward_hook(lambda module, args, output: None)  # then generate calls the model
    ids = torch.randint(0, 67, (3, 5))
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.0}
    assert torch.equal(ss.generate(made, ids, **options), ss.generate(plain, ids, **options))
