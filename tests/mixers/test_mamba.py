"""Mamba and Mamba-2 as the hybrids use them: norms of dt, B and C, fixed multipliers, and the scan's output on the bus."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statescan import Engine, LanguageModel, Spec, Timeline
from statescan.mixers import GatedDeltaNet, Mamba, Mamba2
from statescan.ops import native_gate
from statescan.testing.run import stir


def drawn(module: nn.Module) -> Any:
    """Random weights, in place."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in module.named_parameters():
        centre, scale = (1.0, 0.3) if "norm" in name else (0.0, 0.5 if parameter.ndim == 1 else 0.2)
        parameter.data.copy_(centre + scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def expect_equal_on_random_input(ours: nn.Module, theirs: nn.Module, width: int) -> None:
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 13, width, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_weightless_norms_equal_falcon_mamba() -> None:
    theirs = pytest.importorskip("transformers.models.falcon_mamba.modeling_falcon_mamba")
    config = theirs.FalconMambaConfig(hidden_size=20, state_size=7, num_hidden_layers=1, mixer_rms_eps=1e-3)
    ours = Mamba(20, d_state=7, bcdt_norm="rms", norm_eps=1e-3)
    mixer = drawn(theirs.FalconMambaMixer(config, 0, initialize_mixer_weights=False))
    expect_equal_on_random_input(ours, mixer, 20)


def test_weighted_norms_equal_jamba() -> None:
    theirs = pytest.importorskip("transformers.models.jamba.modeling_jamba")
    config = theirs.JambaConfig(
        hidden_size=24, mamba_d_state=5, mamba_dt_rank=3, mamba_proj_bias=True, rms_norm_eps=1e-4, num_hidden_layers=1
    )
    ours = Mamba(24, d_state=5, dt_rank=3, bias=True, bcdt_norm="rms_weighted", norm_eps=1e-4)
    expect_equal_on_random_input(ours, drawn(theirs.JambaMambaMixer(config, 0)), 24)


@pytest.mark.parametrize("norm", [False, True])
def test_multipliers_equal_falcon_h1(norm: bool) -> None:
    theirs = pytest.importorskip("transformers.models.falcon_h1.modeling_falcon_h1")
    multipliers = (0.5, 1.5, 0.75, 1.25, 0.3)
    config = theirs.FalconH1Config(
        hidden_size=24, mamba_d_ssm=48, mamba_n_heads=6, mamba_d_head=8, mamba_n_groups=2, mamba_d_state=5, mamba_rms_norm=norm,
        mamba_norm_before_gate=False, mamba_chunk_size=4, ssm_multipliers=list(multipliers), ssm_in_multiplier=1.0, num_hidden_layers=1,
    )  # fmt: skip
    mixer = drawn(theirs.FalconH1Mixer(config, 0))
    mixer.register_buffer("mup_vector", theirs.compute_mup_vector(config), persistent=False)
    ours = Mamba2(24, d_state=5, headdim=8, ngroups=2, rmsnorm=norm, norm_eps=config.rms_norm_eps, chunk_size=4, multipliers=multipliers)
    expect_equal_on_random_input(ours, mixer, 24)


def test_norms_of_one_row_of_ones_change_nothing_but_the_scale() -> None:
    """Jamba without its inner norms is Mamba: the same layer with the norms taken out."""
    plain, normed = Mamba(16, d_state=4), Mamba(16, d_state=4, bcdt_norm="rms_weighted")
    normed.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 9, 16)
    assert not torch.allclose(plain(x), normed(x), atol=1e-3)
    for name in ("dt_layernorm", "b_layernorm", "c_layernorm"):
        normed.set_submodule(name, nn.Identity())
    assert torch.equal(plain(x), normed(x))


def test_what_is_shared_is_the_scan_before_the_gate() -> None:
    torch.manual_seed(0)
    plain, sharing = Mamba(16, d_state=4).double(), Mamba(16, d_state=4, share="memory").double()
    sharing.load_state_dict(plain.state_dict())
    assert (plain.writes, sharing.writes) == ((), ("memory",))
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    line = Timeline(torch.rand(2, 9) < 0.2, torch.rand(2, 9) < 0.7)
    bus: dict[str, Tensor] = {}
    y, state = sharing(x, line, return_state=True, bus=bus)
    expected, last = plain(x, line, return_state=True)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(state, last, atol=1e-12, rtol=0)
    (v, steps, B, C, _), _ = plain.streams(x, line)
    torch.testing.assert_close(bus["memory"], plain.recur(v, steps, B, C, None, line, None)[0], atol=1e-12, rtol=0)
    assert not bus["memory"][~line.mask].any()


def test_what_mamba2_shares_is_the_scan_before_the_gate() -> None:
    torch.manual_seed(0)
    sharing = Mamba2(16, d_state=4, headdim=8, share="memory").double()
    assert sharing.writes == ("memory",)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    line = Timeline(torch.rand(2, 9) < 0.2, torch.rand(2, 9) < 0.7)
    bus: dict[str, Tensor] = {}
    y = sharing(x, line, bus=bus)
    torch.testing.assert_close(sharing(x, line), y)  # nobody need listen
    (v, delta, B, C, z), _, mlp = sharing.streams(x, line)
    scan = sharing.recur(v, delta, B, C, line, None)[0]
    torch.testing.assert_close(bus["memory"], scan.flatten(-2), atol=1e-12, rtol=0)
    torch.testing.assert_close(y[line.mask], sharing.finish(scan, z, mlp)[line.mask], atol=1e-12, rtol=0)
    assert not bus["memory"][~line.mask].any()


@pytest.mark.parametrize(
    ("part", "native"),
    [
        (Spec(Mamba, d_state=7, dt_rank=3, bcdt_norm="rms", norm_eps=1e-2), True),
        (Spec(Mamba, d_state=7, dt_rank=3, bcdt_norm="rms_weighted", norm_eps=1e-2), True),
        (Spec(Mamba, share="m"), False),
        (Spec(Mamba2, d_state=8, headdim=16, share="m"), False),
        (Spec(Mamba2, d_state=8, headdim=16, multipliers=(2.0, 1.0, 1.0, 0.5, 1.0)), False),
    ],
)
def test_the_engine_does_not_ignore_them(part: Spec[Any], native: bool) -> None:
    model = stir(LanguageModel(31, 32, "M*2", {"M": part})).eval()
    engine = Engine(model)
    ids = torch.randint(0, 31, (2, 5))
    expected = model(ids)
    state = engine.init_state(2)
    for t in range(5):
        logits, state = engine.step(ids[:, t], state)
        torch.testing.assert_close(logits, expected[:, t], atol=1e-5, rtol=1e-5)
    assert native_gate.module is None or ({"layer 0", "layer 1"} <= engine.called.keys()) is not native


def test_the_range_of_a_spreads_over_the_states_and_leaves_the_default_alone() -> None:
    made = []
    for A in (None, (1.0, 4.0), (0.01, 0.01)):
        torch.manual_seed(0)
        made.append(Mamba(8, d_state=4, A_init_range=A, dt_min=0.5, dt_max=0.5))
    usual, spelled, slow = (mixer.A_log.detach().exp() for mixer in made)
    torch.testing.assert_close(usual, torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(16, 4))
    torch.testing.assert_close(spelled, usual)
    torch.testing.assert_close(slow, torch.full((16, 4), 0.01))
    assert torch.equal(made[0].in_proj.weight, made[2].in_proj.weight)
    for mixer, least, most in ((made[2], 0.5, 0.9), (made[0], 0.0, 1e-6)):  # how much is left after 60 positions
        state = mixer.init_state(1)
        ends = [mixer(torch.zeros(1, 60, 8), state=state._replace(ssm=state.ssm + h), return_state=True)[1].ssm for h in (0, 1)]
        left = ends[1] - ends[0]
        assert least <= left.min()
        assert left.max() <= most


def test_gated_deltanet_starts_within_its_range() -> None:
    decays = GatedDeltaNet(8, num_heads=32, head_dim=2, expand_v=1, A_init_range=(0.1, 0.2)).A_log.detach().exp()
    assert 0.1 <= decays.min() < 0.13
    assert 0.17 < decays.max() <= 0.2


def test_mistakes_are_named() -> None:
    for kind in (Mamba, Mamba2, GatedDeltaNet):
        for wrong in ((2.0, 1.0), (0.0, 1.0)):
            with pytest.raises(ValueError, match="A_init_range must be two positive numbers, the smaller first"):
                kind(16, A_init_range=wrong)
    with pytest.raises(ValueError, match="bcdt_norm must be"):
        Mamba(16, bcdt_norm="layer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="five numbers"):
        Mamba2(16, headdim=16, multipliers=(1.0, 2.0))  # type: ignore[arg-type]
