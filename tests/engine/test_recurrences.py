"""The recurrences beside Mamba in the engine: every lowered step equals the mixer's own, values and states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import statescan as ss
from statescan.engine.recurrences import RECURRENCES
from statescan.layers.linear import is_plain
from statescan.ops import native_gate as gate

pytestmark = pytest.mark.skipif(gate.module is None, reason=f"the kernels are absent: {gate.unavailable}")

MIXERS: dict[str, dict[str, Any]] = {
    "GLA": {"num_heads": 3, "expand_k": 0.5, "expand_v": 1.0, "gate_low_rank_dim": 5},
    "RetNet": {"num_heads": 3, "expand_k": 1 / 3, "expand_v": 1.5, "rotary_base": 50.0},
    "HGRN2": {"expand_ratio": 6, "lower_bound": 0.3},
    "DeltaNet": {"num_heads": 3, "expand_k": 0.5, "use_gate": True, "allow_neg_eigval": True, "conv_size": 3},
    "GatedDeltaNet": {"num_heads": 2, "head_dim": 5, "num_v_heads": 4, "expand_v": 1.4},
    "GatedDeltaNet writes": {"num_heads": 2, "head_dim": 8, "expand_v": 1, "num_writes": 3, "use_gate": False, "allow_neg_eigval": True},
    "KDA": {"num_heads": 2, "head_dim": 7, "expand_v": 1.3},
    "KDA bounded": {"num_heads": 3, "head_dim": 4, "lower_bound": -5.0, "gate_bias": True, "allow_neg_eigval": True, "low_rank": False},
    "RWKV7TimeMix": {"head_dim": 9, "rank_w": 4, "rank_a": 3, "rank_v": 2, "rank_g": 5},
    "RWKV7TimeMix negative": {"head_dim": 6, "rank_w": 2, "rank_a": 2, "rank_v": 2, "rank_g": 2, "allow_neg_eigval": True},
    "RWKV7ChannelMix": {"hidden": 23},
    "MLSTM": {"num_heads": 3, "qk_dim_factor": 0.5, "v_dim_factor": 0.5, "igate_bias_init": 1.0, "use_bias": True},
    "MLSTM without cap": {"num_heads": 3, "gate_soft_cap": None},
    "SLSTM": {"num_heads": 2, "conv1d_kernel_size": 3, "depth": 1.0},
    "RGLRU": {"width": 22, "num_heads": 2, "d_conv": 3},
    "Attention": {"num_heads": 6, "num_kv_heads": 3, "head_dim": 5, "rotary_base": None, "qk_norm": "whole"},
    "Attention window": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 10, "window": 7, "gate": True, "bias": True, "rotary_dim": 6},
    "Attention narrow": {"num_heads": 3, "window": 1, "qk_norm": "offset", "out_bias": True},
    "Attention capacity": {"num_heads": 3, "num_kv_heads": 1, "capacity": 12, "qk_norm": True, "scale": 0.3},
    "Mamba3": {"d_state": 10, "headdim": 6, "ngroups": 2},
    "Mamba3 several": {"d_state": 8, "headdim": 9, "mimo_rank": 3, "rope_fraction": 1.0, "outproj_norm": True, "rate": "softplus"},
    "Mamba3 still": {"d_state": 6, "headdim": 12, "mimo_rank": 4, "rope_fraction": 0.2, "layout": "pairs"},
    "LogLinearMamba2": {"d_state": 6, "headdim": 6, "ngroups": 2, "max_len": 64},
    "LogLinearMamba2 one level": {"d_state": 5, "headdim": 9, "max_len": 1, "bias": True},
    "LogLinearGatedDeltaNet": {"num_heads": 2, "head_dim": 7, "num_v_heads": 4, "expand_v": 1, "max_len": 12},
    "MesaNet": {"num_heads": 3, "head_dim": 7},
    "MesaNet gate": {"num_heads": 2, "head_dim": 18, "use_gate": True, "conv_size": 3, "lambda_lower_bound": 0.5},
}  # fmt: skip


def model(name: str, layers: str = "XX", **options: Any) -> ss.LanguageModel:
    """A language model of an odd vocabulary, all of whose parameters are moved a little."""
    torch.manual_seed(0)
    parts = {"X": ss.Spec(name.split()[0], **MIXERS[name]), "F": ss.Spec("GatedMLP", d_ff=13)}
    made = ss.LanguageModel(67, 18, layers, parts, tie_embeddings=False, **options).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return made


def assert_same(made: ss.LanguageModel, batch: int, rtol: float = 2e-5, steps: int = 3, inplace: bool = False, begin: int = 5) -> None:
    """Some steps of the engine and of the model, from the state behind a few tokens."""
    engine = ss.Engine(made)
    assert not engine.called
    ids = torch.randint(0, 67, (batch, begin + steps))
    with torch.no_grad():
        state = made.init_state(batch) if begin == 0 else made.scan(ids[:, :begin])[1]
        ours, theirs = ss.state.clone(state), state
        for t in range(begin, begin + steps):
            expected, theirs = made.step(ids[:, t], theirs)
            got, ours = engine.step(ids[:, t], ours, inplace=inplace)
            leaves = [("logits", expected, got)]
            for i, (a, b) in enumerate(zip(theirs.layers, ours.layers, strict=True)):
                assert type(a) is type(b)
                leaves += [(f"layer {i} {field}", x, y) for field, x, y in zip(getattr(a, "_fields", ()), a, b, strict=True)]
            for what, a, b in leaves:
                assert b.dtype == (a.dtype if a.dtype == torch.int64 else torch.float32), what
                scale = float(a.float().abs().max()) if a.numel() else 0.0
                where = f"{what}, position {t}"
                torch.testing.assert_close(b, a.to(b.dtype), rtol=rtol, atol=rtol * scale, msg=lambda m, where=where: f"{where}: {m}")


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def test_every_lowering_is_tested() -> None:
    assert {kind.__name__ for kind in RECURRENCES} == {name.split()[0] for name in MIXERS}


@pytest.mark.parametrize("name", MIXERS)
def test_equals_the_model(name: str) -> None:
    made = model(name)
    assert_same(made, 1)
    assert_same(made, 3, begin=0)
    assert_same(made, 5, inplace=True, steps=6)


@pytest.mark.parametrize("name", [name for name in MIXERS if "LogLinear" in name])
@pytest.mark.parametrize("inplace", [False, True])
def test_levels_end_wherever_they_do(name: str, inplace: bool) -> None:
    made = model(name)
    assert_same(made, 2, steps=22, begin=0, inplace=inplace)
    assert_same(made, 2, steps=9, begin=61, inplace=inplace)


def test_levels_that_cannot_be_there_are_refused_in_place() -> None:
    made = model("LogLinearMamba2", "X")
    engine, ids = ss.Engine(made), torch.randint(0, 67, (2, 5))
    with torch.no_grad():
        state = made.scan(ids)[1]
    state.layers[0].s[1, :, 2] = 1.0  # five positions stand on levels 0 and 3
    with pytest.raises(ValueError, match=r"\[5, 5\] positions leave empty"):
        engine.step(ids[:, 0], state, inplace=True)
    with torch.no_grad():
        expected = made.step(ids[:, 0], state)[0]
    torch.testing.assert_close(engine.step(ids[:, 0], state)[0], expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("isa", ["baseline", "avx512"], indirect=True)
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", ["KDA", "Mamba3 several", "Attention window", "LogLinearGatedDeltaNet", "MesaNet"])
def test_every_instruction_set(name: str) -> None:
    assert_same(model(name), 2)


@pytest.mark.parametrize("name", ["GatedDeltaNet", "SLSTM", "Attention", "Mamba3", "LogLinearMamba2", "MesaNet"])
def test_bits_depend_neither_on_threads_nor_on_neighbours(name: str, on_threads: Callable[[int], None]) -> None:
    made = model(name, "XF")
    engine, ids = ss.Engine(made), torch.randint(0, 67, (5, 6))
    with torch.no_grad():
        state = made.scan(ids[:, :-1])[1]
    results = []
    for threads in (1, 2, 3):
        on_threads(threads)
        results.append(engine.step(ids[:, -1], state)[0])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    alone = engine.step(ids[3:4, -1], ss.state.select(state, [3]))[0]
    assert torch.equal(results[0][3:4], alone)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", ["GLA", "MLSTM", "RGLRU", "RWKV7TimeMix"])
def test_quantised_weights(name: str, kind: Any) -> None:
    made = model(name)
    ss.quantize(made, kind)
    assert_same(made, 3, rtol=5e-4)


def rwkv7(pattern: str, embedding_norm: bool = False) -> ss.LanguageModel:
    """Layers R write the value residual, layers T read it."""
    sizes = {"head_dim": 6, "rank_w": 2, "rank_a": 2, "rank_v": 2, "rank_g": 2}
    parts = {"R": ss.Spec("RWKV7TimeMix", **sizes), "T": ss.Spec("RWKV7TimeMix", **sizes, first=False)}
    torch.manual_seed(0)
    made = ss.LanguageModel(67, 18, pattern, parts, norm="layer", embedding_norm=embedding_norm, tie_embeddings=False).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return made


def test_the_value_residual_crosses_native_and_called_layers() -> None:
    made = rwkv7("RTT", embedding_norm=True)
    assert_same(made, 2)
    for layers, called in (((1,), ["layer 1"]), ((0,), ["layer 0", "layer 1", "layer 2"])):
        handles = [made.backbone.layers[i].mixer.output.register_forward_hook(lambda module, args, output: output * 2) for i in layers]
        engine, ids = ss.Engine(made), torch.randint(0, 67, (2, 1))
        assert list(engine.called) == called
        with torch.no_grad():
            expected = made.step(ids[:, 0], made.init_state(2))[0]
        torch.testing.assert_close(engine.step(ids[:, 0], made.init_state(2))[0], expected, rtol=1e-5, atol=1e-5)
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("pattern", "hooked"), [("RRT", (1,)), ("RRT", (2,)), ("RRT", (0, 2)), ("RTRT", (1, 2))])
def test_the_last_writer_of_the_value_residual_counts(pattern: str, hooked: tuple[int, ...], kind: torch.dtype) -> None:
    made = rwkv7(pattern).to(kind)
    for i in hooked:
        made.backbone.layers[i].mixer.output.register_forward_hook(lambda module, args, output: output)
    engine, ids = ss.Engine(made), torch.tensor([5, 9])
    with torch.no_grad():
        expected = made.step(ids, made.init_state(2))[0].float()
    error = (engine.step(ids, made.init_state(2))[0] - expected).abs().mean() / expected.abs().max()
    assert error < (1e-6 if kind == torch.float32 else 0.03)


def test_counts_of_another_integer_type_and_caches_of_unequal_length() -> None:
    made = model("Attention", "X")
    engine, ids = ss.Engine(made), torch.randint(0, 67, (2, 6))
    with torch.no_grad():
        state = made.scan(ids)[1]
        expected = engine.step(ids[:, 0], state)[0]
    keys, values, position = state.layers[0]
    narrow = state._replace(layers=(type(state.layers[0])(keys, values, position.int()),))
    assert torch.equal(engine.step(ids[:, 0], narrow)[0], expected)
    with pytest.raises(ValueError, match="state of layer 0"):
        engine.step(ids[:, 0], state._replace(layers=(type(state.layers[0])(keys, values[:, 1:], position),)))


def test_a_full_cache_is_an_error() -> None:
    made = model("Attention capacity", "X")
    engine, ids = ss.Engine(made), torch.randint(0, 67, (1, 12))
    state = made.scan(ids)[1]
    with pytest.raises(ValueError, match="the cache holds 12 positions and a row has 13"):
        engine.step(ids[:, 0], state)
    state = made.scan(ids[:, :10])[1]
    for _ in range(2):
        _, state = engine.step(ids[:, 0], state, inplace=True)
    with pytest.raises(ValueError, match="the cache holds 12 positions and a row has 13"):
        engine.step(ids[:, 0], state, inplace=True)


@pytest.mark.parametrize("name", MIXERS)
def test_a_projection_of_another_type_is_called(name: str) -> None:
    class Adapted(torch.nn.Linear):
        """As adapters wrap it: the engine cannot know what its call does."""

    made = model(name, "X")
    projections = [module for module in made.backbone.layers.modules() if is_plain(module)]
    if not projections:
        pytest.skip("it has no Linear of its own")
    for projection in projections:
        own, projection.__class__ = type(projection), Adapted
        assert "Adapted" in ss.Engine(made).called["layer 0"]
        projection.__class__ = own
    assert not ss.Engine(made).called


def test_a_longer_sequence_of_projections_is_called() -> None:
    made = model("GLA", "X")
    made.backbone.layers[0].mixer.gk_proj.append(torch.nn.Tanh())
    engine, ids = ss.Engine(made), torch.tensor([5, 9])
    assert "gk_proj has 3 parts" in engine.called["layer 0"]
    with torch.no_grad():
        expected = made.step(ids, made.init_state(2))[0]
    torch.testing.assert_close(engine.step(ids, made.init_state(2))[0], expected, rtol=1e-5, atol=1e-5)
