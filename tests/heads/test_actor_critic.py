"""Actor-critic: acting step by step is the parallel pass; distributions; the published size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import Categorical, Normal

from statescan.heads.actor_critic import ActorCritic
from statescan.spec import Spec
from statescan.timeline import Timeline

MIXERS: dict[str, dict[str, Any]] = {
    "S5": {"d_state": 8},
    "S4D": {"d_state": 4},
    "Mamba": {"d_state": 4},
    "Mamba2": {"d_state": 4, "headdim": 4},
    "GatedDeltaNet": {"num_heads": 2, "head_dim": 4},
    "RGLRU": {},
    "Attention": {"num_heads": 2},
    "GatedMLP": {"d_ff": 8},
}


def _model(mixer: str = "S5", continuous: bool = False, **changes: Any) -> ActorCritic:
    torch.manual_seed(0)
    parts = {"M": Spec(mixer, **MIXERS[mixer]), "F": Spec("GatedMLP", d_ff=8)}
    return ActorCritic(3, 4, continuous, 8, "MFM", parts, **{"d_hidden": 6, **changes}).double()


@pytest.mark.parametrize("norm", ["rms", "none"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_acting_step_by_step_is_the_parallel_pass(mixer: str, norm: str) -> None:
    if norm == "none" and mixer != "S5":
        pytest.skip("one mixer will do")
    model = _model(mixer, norm=norm)
    torch.nn.init.normal_(model.actor[-1].weight)
    x = torch.randn(3, 17, 3, dtype=torch.float64)
    start = torch.rand(3, 17) < 0.2
    start[0, 0], start[1, 0] = True, False
    _, _, state = model(torch.randn(3, 5, 3, dtype=torch.float64), return_state=True)
    policy, value, last = model(x, Timeline(reset=start), state=state, return_state=True)
    now = state
    for t in range(17):
        one_policy, one_value, now = model.step(x[:, t], now, start[:, t])
        torch.testing.assert_close(one_policy, policy[:, t], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(one_value, value[:, t], rtol=1e-9, atol=1e-11)
    after = [model(x[:, :2], state=s)[0] for s in (now, last)]
    torch.testing.assert_close(*after, rtol=1e-9, atol=1e-11)
    if mixer != "GatedMLP":
        assert not torch.allclose(model(x, state=state)[0], policy)  # the resets do something


def test_discrete_actions() -> None:
    model, policy = _model(), torch.randn(5, 2, 4, dtype=torch.float64)
    action, known = torch.randint(4, (5, 2)), Categorical(logits=policy)
    torch.testing.assert_close(model.log_prob(policy, action), known.log_prob(action))
    torch.testing.assert_close(model.entropy(policy), known.entropy())
    assert torch.equal(model.likeliest(policy), policy.argmax(-1))
    many = model.sample(policy[:1, 0].expand(20_000, 4), torch.Generator().manual_seed(0))
    torch.testing.assert_close(many.bincount(minlength=4) / 20_000, policy[0, 0].softmax(-1).float(), atol=0.015, rtol=0)


def test_continuous_actions() -> None:
    model, policy = _model(continuous=True), torch.randn(5, 2, 4, dtype=torch.float64)
    assert model.log_std is not None
    torch.nn.init.normal_(model.log_std)
    action, known = torch.randn(5, 2, 4, dtype=torch.float64), Normal(policy, model.log_std.exp())
    torch.testing.assert_close(model.log_prob(policy, action), known.log_prob(action).sum(-1))
    torch.testing.assert_close(model.entropy(policy), known.entropy().sum(-1))
    many = model.sample(policy[:1, 0].expand(20_000, 4), torch.Generator().manual_seed(0))
    torch.testing.assert_close(many.std(0), model.log_std.exp(), rtol=0.03, atol=0)


def test_the_published_agent_by_its_count() -> None:
    """POPGym's, for 4 inputs and 2 actions: no norm, no MLP between the layers."""
    with torch.device("meta"):
        layer = Spec("S5", d_state=256, activation="full_glu")
        model = ActorCritic(4, 2, False, 256, "S*4", {"S": layer}, d_hidden=128, norm="none")
    assert sum(p.numel() for p in model.parameters()) == 1_186_051


def test_an_agent_does_not_look_ahead() -> None:
    with pytest.raises(ValueError, match="looks ahead"):
        ActorCritic(3, 4, False, 8, "M", {"M": Spec("BidirectionalS5", d_state=4)})
