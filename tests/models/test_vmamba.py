"""VMamba: counts, the verbs of vision libraries, any image size, and state dicts under the original names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import statescan
from statescan import Spec, create_model, list_models, routes
from statescan.backbones.pyramid import Pyramid
from statescan.blocks.vss import VSSBlock
from statescan.heads.classify import Classifier, ImageClassifier
from statescan.models.vmamba import FAMILY, convert_state_dict
from statescan.registry import models

PUBLISHED = {
    "vmamba-vanilla-tiny": 22_893_448,
    "vmamba-vanilla-small": 44_417_416,
    "vmamba-vanilla-base": 76_254_056,
    "vmamba-tiny-s2l5": 30_705_832,
    "vmamba-small-s2l15": 50_147_752,
    "vmamba-base-s2l15": 88_557_800,
    "vmamba-tiny-s1l8": 30_249_064,
    "vmamba-small-s1l20": 49_012_840,
    "vmamba-base-s1l20": 86_614_504,
}
TESTS = ["vmamba-test", "vmamba-vanilla-test"]


def tiny(name: str, **overrides: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return create_model(name, **overrides).eval()


def test_the_nine_configurations_are_listed() -> None:
    assert set(list_models(family="vmamba")) == set(PUBLISHED)
    assert set(list_models(family="vmamba", tiny=True)) == {*PUBLISHED, *TESTS}
    assert all(models[name].family is FAMILY for name in PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name: str) -> None:
    model = create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name] == models[name].parameters
    assert models[name].options["input_size"] == (3, 224, 224)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_multiply_adds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the authors' convention: matrix products and convolutions, and 9 B L E N + B L E a scan. Their figures are rounded, and count some
    elementwise work."""
    scans = 0

    def scan(x: Tensor, delta: Tensor, A: Tensor, *_: Tensor, delta_softplus: bool) -> Tensor:
        nonlocal scans
        scans += x.numel() * (9 * A.shape[1] + 1)
        return x

    monkeypatch.setattr("statescan.mixers.ss2d.selective_scan", scan)
    model = create_model(name, device="meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, *models[name].options["input_size"], device="meta"))
    assert counter.get_total_flops() / 2 + scans == pytest.approx(models[name].options["gmacs"] * 1e9, rel=0.02)


@pytest.mark.parametrize("name", PUBLISHED)
def test_specs_round_trip(name: str) -> None:
    spec = models[name].spec
    assert Spec.from_dict(spec.to_dict()) == spec
    assert Spec.of(create_model(name, device="meta")) == spec


# -- verbs ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("size", [(32, 64), (37, 50), (4, 1)])
def test_any_image_size(name: str, size: tuple[int, int]) -> None:
    model, images = tiny(name), torch.randn(2, 3, *size)
    cells = [(-(-size[0] // s), -(-size[1] // s)) for s in (4, 8, 16, 32)]
    features = model.forward_features(images)
    assert features.shape == (2, 64, *cells[-1])
    assert torch.equal(model.forward_head(features), model(images))
    assert model(images).shape == (2, 5)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    stages = tiny(name, features_only=True)(images)
    assert [tuple(f.shape) for f in stages] == [(2, 8 * 2**i, *cells[i]) for i in range(4)]
    assert torch.equal(stages[-1], features)


def test_features_only_tells_what_it_gives() -> None:
    model = tiny("vmamba-test", features_only=True, out_indices=(1, -1))
    info = [(f["num_chs"], f["reduction"], f["module"]) for f in model.feature_info]
    assert info == [(16, 8, "backbone.stages.1"), (64, 32, "backbone.stages.3")]
    maps = model(torch.randn(1, 3, 32, 32))
    assert [m.shape[1] for m in maps] == [16, 64]
    for f in model.feature_info:
        assert isinstance(model.get_submodule(f["module"]), nn.Module)
    assert not any(name.startswith("head") for name, _ in model.named_parameters())
    full = tiny("vmamba-test")
    assert full.load_state_dict(model.state_dict(), strict=False).missing_keys == [n for n in full.state_dict() if n.startswith("head")]
    with pytest.raises(ValueError, match="out_indices must name stages 0 to 3"):
        tiny("vmamba-test", features_only=True, out_indices=(4,))
    with pytest.raises(ValueError, match="has no head"):
        model.forward_head(maps[-1])


def test_overrides() -> None:
    assert tiny("vmamba-test", num_classes=7)(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    pooled = tiny("vmamba-test", num_classes=0)(torch.randn(1, 3, 32, 32))
    assert pooled.shape == (1, 64)
    assert tiny("vmamba-test", in_chans=1)(torch.randn(1, 1, 32, 32)).shape == (1, 5)
    deeper = tiny("vmamba-test", **{"backbone.depths": [1, 2], "backbone.block.mixer.routes": ["row", "snake"], "drop_path_rate": 0.2})
    blocks = [m for m in deeper.modules() if isinstance(m, VSSBlock)]
    assert [block.drop_path.p for block in blocks] == [0.0, pytest.approx(0.1), pytest.approx(0.2)]
    assert [str(r) for r in blocks[0].mixer.routes] == ["row", "snake"]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="did you mean 'num_classes'"):
        tiny("vmamba-test", num_class=3)


def test_wrong_images_and_shapes_are_clear_errors() -> None:
    model = tiny("vmamba-test")
    with pytest.raises(ValueError, match=r"expected images \(batch, 3, height, width\)"):
        model(torch.randn(1, 32, 32, 3))
    with pytest.raises(ValueError, match="one of each a stage"):
        Pyramid(dims=(8, 16), depths=(1, 1, 1))
    with pytest.raises(ValueError, match="must say its stride"):
        Pyramid(dims=8, depths=(1,), stem=lambda a, b: nn.Conv2d(a, b, 1))


def test_widths_may_be_given_one_by_one() -> None:
    pyramid = Pyramid(dims=(8, 12, 20), depths=(1, 1, 1))
    maps = pyramid(torch.randn(1, 3, 32, 32), all_stages=True)
    assert [tuple(m.shape) for m in maps] == [(1, 8, 8, 8), (1, 4, 4, 12), (1, 2, 2, 20)]
    assert torch.equal(pyramid(torch.zeros(1, 3, 8, 8)), pyramid(torch.zeros(1, 3, 8, 8), all_stages=True)[-1])


def test_the_head_and_its_loss() -> None:
    head = Classifier(6, 3)
    features = torch.randn(2, 4, 5, 6)
    assert torch.allclose(head(features), head.fc(head.norm(features).mean((1, 2))), atol=1e-6)  # type: ignore[misc]
    scores, target = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    by_hand = -torch.stack([scores[i].log_softmax(0)[t] for i, t in enumerate(target.tolist())]).mean()
    assert torch.allclose(head.loss(scores, target), by_hand)
    soft = torch.eye(3)[target]
    assert torch.allclose(head.loss(scores, soft), by_hand)
    assert torch.allclose(head.loss(scores, target, 0.3), head.loss(scores, 0.7 * soft + 0.1))


def test_shapes_can_be_asked_without_memory() -> None:
    images = torch.empty(1, 3, 40, 40, device="meta")
    assert create_model("vmamba-test", device="meta").backbone.stem(images).shape == (1, 10, 10, 8)
    layer = create_model("vmamba-test", device="meta").backbone.stages[0].blocks[0].mixer
    u = torch.empty(1, 5, 4, 8, device="meta")
    assert [t.shape for t in layer.select(u, routes.prepare(layer.routes, (5, 4), u.device))] == [
        (1, 20, 32),
        (1, 20, 32),
        (1, 20, 4, 1),
        (1, 20, 4, 1),
    ]


# -- starting values and training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TESTS)
def test_the_start_of_linears_does_not_overwrite_the_steps(name: str) -> None:
    model = tiny(name, **{"backbone.dims": 32})
    for child in model.modules():
        if isinstance(child, nn.Linear):
            assert child.weight.std() < 0.03
            assert child.bias is None or not child.bias.any()
    mixer = model.backbone.stages[2].blocks[0].mixer  # type: ignore[union-attr, index]
    rank = mixer.dt_rank
    assert 0.8 * rank**-0.5 < mixer.dt_projs.weight.abs().max() <= rank**-0.5
    steps = nn.functional.softplus(mixer.dt_projs.bias)
    assert steps.min() >= 0.001 - 1e-6
    assert steps.max() <= 0.1 + 1e-6


def test_every_parameter_receives_a_gradient_and_few_steps_learn_two_textures() -> None:
    torch.manual_seed(0)
    model = create_model("vmamba-test", num_classes=2).train()
    stripes = torch.arange(16) % 4 < 2
    across, down = stripes.float().expand(16, 16), stripes.float().unsqueeze(1).expand(16, 16)
    target = torch.arange(16) % 2
    images = torch.where(target.view(-1, 1, 1, 1).bool(), across, down).expand(-1, 3, -1, -1) + 0.3 * torch.randn(16, 3, 16, 16)
    optimiser = torch.optim.AdamW(model.parameter_groups(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model.loss(model(images), target)
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < 0.5 < losses[0]


def test_activation_checkpointing_changes_no_value() -> None:
    model, images = tiny("vmamba-test"), torch.randn(1, 3, 32, 32)
    gradients = []
    for enabled in (False, True):
        model.backbone.set_gradient_checkpointing(enabled)
        gradients.append(torch.autograd.grad(model(images).square().sum(), list(model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_hooks_on_every_block_fire() -> None:
    model, seen = tiny("vmamba-test"), []
    for name, child in model.named_modules():
        if isinstance(child, (VSSBlock, Pyramid, Classifier, nn.Linear)):
            child.register_forward_hook(lambda *_, name=name: seen.append(name))
    expected = [n for n, m in model.named_modules() if isinstance(m, (VSSBlock, Pyramid, Classifier, nn.Linear))]
    model(torch.randn(1, 3, 32, 32))
    assert sorted(seen) == sorted(expected)


# -- original names ---------------------------------------------------------------------------------------------------------------------


def original_shapes(
    model: ImageClassifier, *, one_file: bool = False, channels_first: bool = False
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the published code's state dict for a configuration, written down from its layout, not from ours."""
    dims = model.backbone.dims
    depths = [len(stage.blocks) for stage in model.backbone.stages]  # type: ignore[arg-type]
    mixer = model.backbone.stages[0].blocks[0].mixer  # type: ignore[union-attr, index]
    ratio, n, vanilla = mixer.d_inner // dims[0], mixer.d_state, mixer.gate

    def linear(name: str, out: int, inner: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (out, inner, 1, 1) if channels_first else (out, inner)
        if bias:
            yield f"{name}.bias", (out,)

    def norm(name: str, d: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (d,)
        yield f"{name}.bias", (d,)

    def conv(name: str, out: int, inner: int, k: int, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (out, inner, k, k)
        if bias:
            yield f"{name}.bias", (out,)

    if vanilla:
        yield from conv("patch_embed.0", dims[0], 3, 4)
        yield from norm("patch_embed.2", dims[0])
    else:
        yield from conv("patch_embed.0", dims[0] // 2, 3, 3)
        yield from norm("patch_embed.2", dims[0] // 2)
        yield from conv("patch_embed.5", dims[0], dims[0] // 2, 3)
        yield from norm("patch_embed.7", dims[0])
    for i, (d, depth) in enumerate(zip(dims, depths, strict=True)):
        e, r = ratio * d, -(-d // 16)
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            yield from norm(f"{block}.norm", d)
            yield f"{block}.op.A_logs", (4 * e, n)
            yield f"{block}.op.Ds", (4 * e,)
            yield from linear(f"{block}.op.in_proj", 2 * e if vanilla else e, d, False)
            yield from conv(f"{block}.op.conv2d", e, 1, 3, bias=vanilla)
            if one_file and not vanilla:
                yield f"{block}.op.x_proj.weight", (4 * (r + 2 * n), e)
                yield f"{block}.op.dt_projs.weight", (4 * e, r)
            else:
                yield f"{block}.op.x_proj_weight", (4, r + 2 * n, e)
                yield f"{block}.op.dt_projs_weight", (4, e, r)
            yield f"{block}.op.dt_projs_bias", (4, e)
            yield from norm(f"{block}.op.out_norm", e)
            yield from linear(f"{block}.op.out_proj", d, e, False)
            if not vanilla:
                yield from norm(f"{block}.norm2", d)
                yield from linear(f"{block}.mlp.fc1", 4 * d, d, True)
                yield from linear(f"{block}.mlp.fc2", d, 4 * d, True)
        if i < len(dims) - 1 and vanilla:
            yield from norm(f"layers.{i}.downsample.{1 if one_file else 'norm'}", 4 * d)
            yield from linear(f"layers.{i}.downsample.{2 if one_file else 'reduction'}", 2 * d, 4 * d, False)
        elif i < len(dims) - 1:
            yield from conv(f"layers.{i}.downsample.1", 2 * d, d, 3)
            yield from norm(f"layers.{i}.downsample.3", 2 * d)
    yield from norm("classifier.norm", dims[-1])
    yield "classifier.head.weight", (model.num_classes, dims[-1])
    yield "classifier.head.bias", (model.num_classes,)


def original_tensors(model: ImageClassifier, device: str, **layout: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if device == "meta":
        return {name: torch.empty(shape, device="meta") for name, shape in original_shapes(model, **layout)}
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in original_shapes(model, **layout)}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("one_file", [False, True])
def test_original_names_of_every_configuration_load_strictly(name: str, one_file: bool) -> None:
    model = create_model(name, device="meta")
    original = original_tensors(model, "meta", one_file=one_file)
    assert sum(t.numel() for t in original.values()) == PUBLISHED[name]
    model.load_state_dict(convert_state_dict(original, model))


@pytest.mark.parametrize("name", TESTS)
def test_original_tensors_arrive_where_they_belong(name: str) -> None:
    results = []
    for layout in ({}, {"one_file": True}, {"channels_first": True}):
        model = tiny(name)
        original = original_tensors(model, "cpu", **layout)
        model.load_state_dict(convert_state_dict(original, model))
        results.append(model(torch.ones(1, 3, 32, 32)))
        block = model.backbone.stages[2].blocks[1]  # type: ignore[union-attr, index]
        loaded = dict(model.named_parameters())
        assert torch.equal(block.norm.weight, original["layers.2.blocks.1.norm.weight"])
        assert torch.equal(block.mixer.dt_projs.bias, original["layers.2.blocks.1.op.dt_projs_bias"])
        assert torch.equal(loaded["head.fc.weight"], original["classifier.head.weight"])
    # The three layouts hold the same random numbers, so the models are the same.
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_names_of_the_first_releases_load_too() -> None:
    model = tiny("vmamba-vanilla-test")
    now = original_tensors(model, "cpu")
    then = {}
    for name, tensor in now.items():
        name = name.replace("patch_embed.0", "patch_embed.proj").replace("patch_embed.2", "patch_embed.norm")
        name = name.replace(".op.", ".self_attention.").replace("classifier.", "")
        if ".blocks." in name:
            name = name.replace(".norm.", ".ln_1.")
        then[name] = tensor
    converted = convert_state_dict(then, model)
    assert converted.keys() == model.state_dict().keys()
    assert all(torch.equal(converted[n], t) for n, t in convert_state_dict(now, model).items())


def test_a_foreign_state_dict_is_named_not_swallowed() -> None:
    model = tiny("vmamba-test")
    original = original_tensors(model, "cpu")
    with pytest.raises(RuntimeError, match=r"Unexpected key.*pos_embed"):
        model.load_state_dict(convert_state_dict({**original, "pos_embed": torch.zeros(1)}, model))
    missing = {name: t for name, t in original.items() if name != "layers.0.blocks.0.op.Ds"}
    with pytest.raises(RuntimeError, match=r"Missing key.*backbone.stages.0.blocks.0.mixer.Ds"):
        model.load_state_dict(convert_state_dict(missing, model))
    with pytest.raises(RuntimeError, match=r"size mismatch for head\.fc\.weight"):
        model.load_state_dict(convert_state_dict({**original, "classifier.head.weight": torch.zeros(9, 64)}, model))
    twice = {**original, "layers.0.blocks.0.op.x_proj.weight": original["layers.0.blocks.0.op.x_proj_weight"]}
    with pytest.raises(ValueError, match="two names of the checkpoint"):
        convert_state_dict(twice, model)


# -- deployment --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TESTS)
def test_bfloat16_stays_close(name: str) -> None:
    model, images = tiny(name), torch.randn(2, 3, 32, 48)
    expected = model.forward_features(images)
    low = tiny(name).to(torch.bfloat16)
    assert low.backbone.stages[0].blocks[0].mixer.A_logs.dtype == torch.float32  # type: ignore[union-attr, index]
    assert (low.forward_features(images.bfloat16()).float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.full
def test_compiles_with_one_graph_for_every_size() -> None:
    model = tiny("vmamba-test")
    with statescan.implementation("portable"):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
        for size in ((64, 72), (48, 80)):
            images = torch.randn(2, 3, *size)
            assert torch.allclose(compiled(images), model(images), rtol=1e-4, atol=1e-5)
