"""For each law, mixers that break it in the ways the field has seen: each must be caught, by that law, with a telling message."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statescan.mixers import GatedShortConv, ShortConvState
from statescan.ops.dispatch import Op
from statescan.protocols import CausalMixer
from statescan.testing import BrokenLaws, Mode, Subject, check_mixer, runtime
from statescan.testing.distributed import law_distributed
from statescan.testing.report import Report
from statescan.timeline import Timeline
from tests.laws.toys import Toy, ToyState
from tests.laws.toys import op as toy_op


class DropsState(Toy):
    """Hands out the initial state instead of the last one."""

    def forward(self, x: Tensor, timeline: Any = None, *, state: Any = None, return_state: bool = False, bus: Any = None) -> Any:
        y = super().forward(x, timeline, state=state)
        return (y, self.init_state(x.shape[0])) if return_state else y


class StartsElsewhere(Toy):
    """Without a state it starts from zero, not from init_state."""

    def forward(self, x: Tensor, timeline: Any = None, *, state: Any = None, return_state: bool = False, bus: Any = None) -> Any:
        state = ToyState(x.new_zeros(x.shape[0], x.shape[2])) if state is None else state
        return super().forward(x, timeline, state=state, return_state=return_state)


class StepForgetsTimeline(Toy):
    def step(self, x: Tensor, state: ToyState, timeline: Timeline | None = None, bus: Any = None) -> Any:
        return super().step(x, state, None)


class StepMissesGradient(Toy):
    """The values are right; the gradient of the weights is lost on the fast path."""

    def step(self, x: Tensor, state: ToyState, timeline: Timeline | None = None, bus: Any = None) -> Any:
        y, last = super().step(x, state, timeline)
        return y.detach() + 0 * last.h.sum(), last


class LeaksAcrossResets(Toy):
    def recur(self, decay: Tensor, v: Tensor, h: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return super().recur(decay, v, h, torch.zeros_like(reset), mask)


class ResetsToZero(Toy):
    """A reset returns to zero although the layer learned where it starts."""

    def recur(self, decay: Tensor, v: Tensor, h: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return toy_op(decay=decay, v=v, state=h, reset_to=torch.zeros_like(h), reset=reset, mask=mask)


class MissesHiddenReset(Toy):
    """A reset on a position that does not exist is lost."""

    def recur(self, decay: Tensor, v: Tensor, h: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return super().recur(decay, v, h, reset & mask, mask)


class MultipliesMask(Toy):
    """0 * NaN is NaN."""

    def forward(self, x: Tensor, timeline: Any = None, *, state: Any = None, return_state: bool = False, bus: Any = None) -> Any:
        mask = None if timeline is None else timeline.mask
        if mask is not None:
            x = x * mask[..., None]
        y = super().forward(x, Timeline() if timeline is None else timeline._replace(mask=None), state=state, return_state=return_state)
        return y


class DecaysThroughPadding(Toy):
    """Zeroes the padded inputs and lets time pass: what attention masks do to most recurrent layers."""

    def recur(self, decay: Tensor, v: Tensor, h: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return super().recur(decay, torch.where(mask[..., None], v, 0.0), h, reset, torch.ones_like(mask))


class AnswersAtPadding(Toy):
    """Its output at positions that do not exist is the projection's bias."""

    def forward(self, x: Tensor, timeline: Any = None, *, state: Any = None, return_state: bool = False, bus: Any = None) -> Any:
        y = super().forward(x, timeline, state=state, return_state=True)
        if timeline is not None and timeline.mask is not None:
            y = (torch.where(timeline.mask[..., None], y[0], 1e-12), y[1])
        return y if return_state else y[0]


class PeeksAhead(Toy):
    def recur(self, decay: Tensor, v: Tensor, h: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        shown = torch.where(mask[..., None], v, 0.0)
        return super().recur(decay, v - 1e-6 * shown.mean(1, keepdim=True), h, reset, mask)


class DetachesIncoming(Toy):
    def forward(self, x: Tensor, timeline: Any = None, *, state: Any = None, return_state: bool = False, bus: Any = None) -> Any:
        state = None if state is None else ToyState(state.h.detach())
        return super().forward(x, timeline, state=state, return_state=return_state)


class DetachesOutgoing(Toy):
    def forward(self, x: Tensor, timeline: Any = None, *, state: Any = None, return_state: bool = False, bus: Any = None) -> Any:
        y, last = super().forward(x, timeline, state=state, return_state=True)
        return (y, ToyState(last.h.detach())) if return_state else y


class _WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * 1.001


class ClaimsToForget(Toy):
    """Says that its state is gone after two positions; an average never is."""

    memory = 2


class ForgetsTooSoon(GatedShortConv):
    """A window of two inputs that stops the gradient of the older one."""

    def forward(self, x: Tensor, timeline: Any = None, *, state: Any = None, return_state: bool = False, bus: Any = None) -> Any:
        y = super().forward(x, timeline, state=state)
        state = None if state is None else ShortConvState(state.conv.detach())
        return (y, super().forward(x, timeline, state=state, return_state=True)[1]) if return_state else y


class WrongGradient(Toy):
    def recur(self, decay: Tensor, v: Tensor, h: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return super().recur(decay, _WrongBackward.apply(v), h, reset, mask)


class OnAnOp(Toy):
    """Runs on an op of its own, whose second implementation is wrong."""

    op: Op

    def recur(self, decay: Tensor, v: Tensor, h: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.op(decay=decay, v=v, state=h, reset_to=self.h0.expand_as(h), reset=reset, mask=mask)


reference = toy_op.implementations["reference"].run
portable = toy_op.implementations["portable"].run


class Disagrees(OnAnOp):
    op = Op("toy_disagrees", tolerance={})


Disagrees.op.implementation("reference")(reference)


@Disagrees.op.implementation("portable")
def _off(**arguments: Tensor) -> tuple[Tensor, Tensor]:
    y, h = portable(**arguments)
    return y, h * (1 + 1e-6)


class ReadsFreshMemory(OnAnOp):
    op = Op("toy_fresh", tolerance={})


ReadsFreshMemory.op.implementation("reference")(reference)


@ReadsFreshMemory.op.implementation("portable")
def _fresh(**arguments: Tensor) -> tuple[Tensor, Tensor]:
    y, h = portable(**arguments)
    return y + torch.where(torch.empty(()).isnan(), torch.nan, 0.0), h


class WrongGradientInOne(OnAnOp):
    op = Op("toy_gradient", tolerance={})


WrongGradientInOne.op.implementation("reference")(reference)


@WrongGradientInOne.op.implementation("portable")
def _wrong(**arguments: Tensor) -> tuple[Tensor, Tensor]:
    return portable(**{**arguments, "v": _WrongBackward.apply(arguments["v"])})


class ReadsWeight(Toy):
    """Takes the weight of a projection instead of calling it."""

    def forward(self, x: Tensor, timeline: Any = None, *, state: Any = None, return_state: bool = False, bus: Any = None) -> Any:
        called, self.out_proj = self.out_proj, _Raw(self.out_proj.weight, self.out_proj.bias)
        try:
            return super().forward(x, timeline, state=state, return_state=return_state)
        finally:
            self.out_proj = called


class _Raw(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.w, self.b = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.w, self.b)


class FusesWithoutGradient(ReadsWeight):
    """Only the no-grad fast path takes the weight."""

    def forward(self, x: Tensor, timeline: Any = None, *, state: Any = None, return_state: bool = False, bus: Any = None) -> Any:
        run = Toy.forward if torch.is_grad_enabled() else ReadsWeight.forward
        return run(self, x, timeline, state=state, return_state=return_state)


class FusedStep(ReadsWeight):
    """Only ``step`` takes the weight."""

    def forward(self, x: Tensor, timeline: Any = None, *, state: Any = None, return_state: bool = False, bus: Any = None) -> Any:
        return Toy.forward(self, x, timeline, state=state, return_state=return_state)

    def step(self, x: Tensor, state: ToyState, timeline: Timeline | None = None, bus: Any = None) -> Any:
        line = None if timeline is None else timeline.as_sequence()
        y, last = ReadsWeight.forward(self, x[:, None], line, state=state, return_state=True)
        return y[:, 0], last


class SkipsCall(Toy):
    """Calls ``forward`` of a child, so its hooks never fire."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.gate = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, timeline: Any = None, *, state: Any = None, return_state: bool = False, bus: Any = None) -> Any:
        y, last = super().forward(x, timeline, state=state, return_state=True)
        y = y * (1 + self.gate.forward(y))
        return (y, last) if return_state else y


class Remembers(Toy):
    """Keeps a value on itself between calls: recomputation gives another one."""

    calls = 0

    def recur(self, decay: Tensor, v: Tensor, h: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return super().recur(decay, v * (1 + 1e-9 * self.calls), h, reset, mask)


class IgnoresTime(Toy):
    def dynamics_of(self, v: Tensor, delta_raw: Tensor, interval: Any) -> tuple[Tensor, Tensor]:
        return super().dynamics_of(v, delta_raw, None)


class AcceptsTimeInSilence(IgnoresTime):
    has_time = False
    holds_input = False


class ScalesInput(Toy):
    """Time multiplies the input term instead of being integrated."""

    def dynamics_of(self, v: Tensor, delta_raw: Tensor, interval: Any) -> tuple[Tensor, Tensor]:
        decay, v = super().dynamics_of(v, delta_raw, interval)
        return decay, v if interval is None else v * (interval[..., None].to(v) if isinstance(interval, Tensor) else interval)


LAWS_BROKEN = [
    (DropsState, 1, "state.h"),
    (StartsElsewhere, 1, "scan from init_state"),
    (StepForgetsTimeline, 1, "steps"),
    (StepMissesGradient, 1, "gradient of out_proj.weight"),
    (LeaksAcrossResets, 2, "packed"),
    (ResetsToZero, 2, "packed"),
    (MissesHiddenReset, 2, "reset on a missing position"),
    (MultipliesMask, 2, "NaN"),
    (DecaysThroughPadding, 2, "left-padded"),
    (AnswersAtPadding, 2, "is not zero"),
    (PeeksAhead, 3, "moved the output at time"),
    (DetachesIncoming, 4, "into the incoming state.h"),
    (DetachesOutgoing, 4, "outgoing state.h is detached"),
    (ClaimsToForget, 4, "a gradient flows through 2 positions"),
    (ForgetsTooSoon, 4, "no gradient flows through 1 positions"),
    (WrongGradient, 4, "gradcheck"),
    (Disagrees, 5, "state.h"),
    (ReadsFreshMemory, 5, "NaN"),
    (WrongGradientInOne, 5, "gradient of the input"),
    (ReadsWeight, 6, "out_proj.weight"),
    (FusesWithoutGradient, 6, "no_grad"),
    (FusedStep, 6, "steps: the output does not change"),
    (SkipsCall, 6, "gate"),
    (Remembers, 6, "activation checkpointing"),
    (IgnoresTime, 7, "held input"),
    (AcceptsTimeInSilence, 7, "accepted in silence"),
    (ScalesInput, 7, "held input"),
]


@pytest.mark.parametrize(("broken", "law", "says"), LAWS_BROKEN, ids=lambda v: v.__name__ if isinstance(v, type) else None)
def test_a_broken_mixer_is_caught(broken: type[CausalMixer], law: int, says: str) -> None:
    with pytest.raises(BrokenLaws) as caught:
        check_mixer(broken, 8, laws=[law], verbose=False)
    failed = caught.value.report.failed
    assert {finding.law for finding in failed} == {law}
    assert any(says in str(finding) for finding in failed), str(caught.value)


class Noisy(Toy):
    def recur(self, decay: Tensor, v: Tensor, h: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return super().recur(decay, v + 1e-7 * torch.randn_like(v), h, reset, mask)


class DependsOnThreads(OnAnOp):
    """A sum whose order follows the number of threads."""

    op = Op("toy_threads", tolerance={})


@DependsOnThreads.op.implementation("native")
def _threads(**arguments: Tensor) -> tuple[Tensor, Tensor]:
    y, h = portable(**arguments)
    return y * (1 + 1e-7 * torch.get_num_threads()), h


class MutatesState(Toy):
    def recur(self, decay: Tensor, v: Tensor, h: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        y, last = super().recur(decay, v, h, reset, mask)
        if not torch.is_grad_enabled():
            h.copy_(last)
        return y, last


class SharesState(Toy):
    """The outgoing state is the incoming one's memory."""

    def recur(self, decay: Tensor, v: Tensor, h: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return super().recur(decay, v, h, reset, mask)[0], h


class Overflows(Toy):
    def dynamics_of(self, v: Tensor, delta_raw: Tensor, interval: Any) -> tuple[Tensor, Tensor]:
        delta = (delta_raw.float() + self.dt_bias).exp().log1p()  # a softplus by its definition
        return (-delta * self.A_log.exp()).clamp(min=-60.0).exp(), v.to(delta.dtype)


class BranchesOnValues(Toy):
    def recur(self, decay: Tensor, v: Tensor, h: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if bool(reset.any()):
            return super().recur(decay, v, h, reset, mask)
        return super().recur(decay, v, h, torch.zeros_like(reset), mask)


class LoopsInPython(Toy):
    """One graph a length."""

    def recur(self, decay: Tensor, v: Tensor, h: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return reference(decay=decay, v=v, state=h, reset_to=self.h0.expand_as(h), reset=reset, mask=mask)


class HidesATensor(Toy):
    """Something the values depend on is in no state_dict."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.scale = nn.Parameter(torch.ones(d_model))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        found = super().state_dict(*args, **kwargs)
        found[kwargs.get("prefix", "") + "scale"] = torch.zeros_like(self.scale)
        return found

    def dynamics_of(self, v: Tensor, delta_raw: Tensor, interval: Any) -> tuple[Tensor, Tensor]:
        decay, v = super().dynamics_of(v, delta_raw, interval)
        return decay, v * self.scale


class MixesRowsOfState(Toy):
    """The state is not batch first, so rows cannot be selected."""

    def init_state(self, batch_size: int, **_: Any) -> ToyState:
        return ToyState(self.h0.expand(batch_size, -1).t())

    def recur(self, decay: Tensor, v: Tensor, h: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        y, last = super().recur(decay, v, h.t(), reset, mask)
        return y, last.t()


class LosesPrecision(Toy):
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return nn.Module._apply(self, fn, recurse)


class KeepsTooMuch(Toy):
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return self


RUNTIME_BROKEN = [
    (Noisy, runtime.expect_repeatable, "not bit-identical"),
    (DependsOnThreads, lambda s, _: runtime.expect_threads(s, Mode("native", torch.float32, {"toy_threads": "native"})), "2 threads"),
    (MutatesState, runtime.expect_untouched, "incoming state.h"),
    (SharesState, runtime.expect_untouched, "shares memory with incoming state.h"),
    (Overflows, runtime.expect_finite, "is not finite for large inputs"),
    (BranchesOnValues, lambda s, _: runtime.expect_compiles(s), "data-dependent"),
    (LoopsInPython, lambda s, _: runtime.expect_compiles(s), "recompil"),
    (BranchesOnValues, lambda s, _: runtime.expect_exports(s), "data-dependent"),
    (HidesATensor, lambda s, _: runtime.expect_copies(s), "not bit-identical"),
    (MixesRowsOfState, lambda s, _: runtime.expect_saves_state(s), ""),
    (LosesPrecision, lambda s, _: runtime.expect_precision(s), "dynamics stay float32"),
    (KeepsTooMuch, lambda s, _: runtime.expect_precision(s), "not declared"),
]


@pytest.mark.parametrize(("broken", "expect", "says"), RUNTIME_BROKEN, ids=lambda v: v.__name__ if isinstance(v, type) else None)
def test_a_layer_that_the_machinery_cannot_use_is_caught(broken: type[Toy], expect: Any, says: str) -> None:
    mode = Mode("portable", torch.float32, {"toy_scan": "portable"})
    with pytest.raises(Exception) as caught, mode.active():  # noqa: PT011 - dynamo and export raise their own
        expect(Subject(broken.__name__, broken(8), width=8), mode)
    assert says.lower() in str(caught.value).lower(), str(caught.value)


def test_the_toy_keeps_every_law() -> None:
    report = check_mixer(Toy, 16, verbose=False)
    assert {finding.law for finding in report.passed} == set(range(1, 9))
    assert not report.skipped


@pytest.mark.full
def test_a_layer_that_shares_rows_fails_distribution() -> None:
    report = Report("MixesRows")
    law_distributed(functools.partial(MixesRows, 8), Subject("MixesRows", MixesRows(8), width=8), report)
    assert {finding.comparison.split()[0] for finding in report.failed} == {"DDP", "FSDP2"}


class MixesRows(Toy):
    """A row's output depends on the other rows, undeclared."""

    def recur(self, decay: Tensor, v: Tensor, h: Tensor, reset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return super().recur(decay, v - v.mean(0, keepdim=True), h, reset, mask)


def test_what_was_skipped_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    class Timeless(Toy):
        holds_input = False

    check_mixer(Timeless, 8, laws=[7])
    assert "skipped law 7" in capsys.readouterr().out


def test_unknown_laws_and_implementations() -> None:
    with pytest.raises(ValueError, match="no law"):
        check_mixer(Toy, 8, laws=[9])
    with pytest.raises(ValueError, match="runs none of"):
        check_mixer(Toy, 8, implementations=["triton"])
