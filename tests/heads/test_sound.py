"""Sound models: streamed as whole, decoded as streamed, and what their outputs say."""

from __future__ import annotations

import pytest
import torch

from statescan.backbones import FlatBackbone, PoolUNet
from statescan.engine.sound import SoundDecoder
from statescan.heads.sound import SoundModel
from statescan.heads.waveform import linear_decode, linear_encode
from statescan.mixers import S4D, Mamba
from statescan.mixers.s4 import S4
from statescan.spec import Spec

UNET = Spec(PoolUNet, mixer=Spec(S4, d_state=4, n_ssm=1), n_layers=1, pool=(2, 3))


def model(**arguments: object) -> SoundModel:
    torch.manual_seed(1)
    return SoundModel(**{"d_model": 6, "network": UNET, "levels": 16, **arguments}).double().eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("components", [0, 2])
def test_streamed_is_whole(components: int) -> None:
    net, ids = model(components=components), torch.randint(0, 16, (2, 23), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = net(ids)
        first, state = net.scan(ids[:, :7])
        rest, _ = net.scan(ids[:, 7:], state)
        torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=1e-9, atol=1e-10)
        state, steps = net.init_state(2), []
        for t in range(23):
            y, state = net.step(ids[:, t], state)
            steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("network", "called"),
    [
        (UNET, []),
        (UNET.override({"unet": True, "mixer": Spec(S4D, d_state=4, final_act="none", activation="silu")}), []),
        (Spec(PoolUNet, mixer=Spec(S4, d_state=4, init="legt", rank=2), n_layers=1, pool=()), []),
        (Spec(PoolUNet, mixer=Spec(S4, d_state=4, disc="zoh", n_ssm=1), n_layers=1, pool=(2,), norm="rms"), ["S4", "S4"]),
        (Spec(FlatBackbone, layers="M", parts={"M": Spec(Mamba, d_state=2)}), ["FlatBackbone"]),
    ],
)
def test_the_decoder_says_what_the_model_says(network: Spec[torch.nn.Module], called: list[str]) -> None:
    net, ids = model(network=network), torch.randint(0, 16, (3, 14), generator=torch.Generator().manual_seed(0))
    decoder = SoundDecoder(net, 3)
    assert decoder.called == called
    with torch.no_grad():
        whole = net(ids)
    torch.testing.assert_close(torch.stack([decoder.step(ids[:, t]) for t in range(14)], 1), whole, rtol=1e-9, atol=1e-10)


def test_the_decoder_calls_what_is_watched_or_replaced() -> None:
    net, seen = model(), []
    net.network.up[0].mixer.register_forward_hook(lambda *_: seen.append(1))  # type: ignore[index, union-attr]
    assert SoundDecoder(net, 1).called == ["S4"]
    with pytest.raises(ValueError, match="eval"):
        SoundDecoder(net.train(), 1)


def test_nll() -> None:
    ids = torch.randint(0, 16, (2, 5))
    targets = torch.tensor([[1, 2, 3, -100, -100], [15, 0, 3, 4, 5]])
    for components in (0, 3):
        net = model(components=components)
        nll = net.nll(outputs := net(ids), targets)
        assert nll.shape == targets.shape
        assert (nll[targets < 0] == 0).all()
        if not components:
            assert nll[1, 2].item() == pytest.approx(-outputs.log_softmax(-1)[1, 2, 3].item())
        assert net.loss(outputs, targets).item() == pytest.approx(nll.sum().item() / 8)


def test_levels() -> None:
    every = torch.arange(65536)
    assert torch.equal(linear_encode(linear_decode(every, 65536).double(), 65536), every)
    net = model(levels=256, coding="linear")
    assert net.encode(torch.tensor([-2.0, -1.0, 0.0, 1.0])).tolist() == [0, 0, 128, 255]
    assert net.silence == 128
    with pytest.raises(ValueError, match="need a mixture"):
        model(levels=65536)
    with pytest.raises(ValueError, match=r"levels must be integers of shape"):
        net(torch.zeros(2, 3))
