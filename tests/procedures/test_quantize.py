"""The transform: what it replaces and what it leaves, that a folder comes back bit for bit, and what it costs a trained model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import statescan as ss
from statescan.cli import main
from statescan.data.tokenizers import load_tokenizer
from statescan.interop.adapters import lora_targets
from statescan.layers import Linear, QuantLinear
from statescan.ops.dispatch import explain
from statescan.procedures.quantize import Kind, quantize

KINDS: tuple[Kind, ...] = ("int8", "int4")


def ids(rows: int = 2, length: int = 9) -> Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(0))


def linears(model: nn.Module) -> dict[str, type]:
    return {name: type(child) for name, child in model.named_modules() if isinstance(child, nn.Linear)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mamba-tiny", "mamba2-tiny"])
def test_replaces_plain_linears_and_nothing_else(name: str, kind: Kind) -> None:
    model = ss.create_model(name).eval()
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    before = linears(model)
    embedding = model.backbone.embedding.weight
    report = quantize(model, kind)
    plain = {n for n, cls in before.items() if cls in (nn.Linear, Linear)}
    assert {layer.name for layer in report.layers} == plain
    assert {n for n, cls in linears(model).items() if cls is QuantLinear} == plain
    assert set(report.left) == set(before) - plain
    assert all("DeltaProjection" in why for why in report.left.values())
    assert model.backbone.embedding.weight is embedding
    for n, parameter in model.named_parameters():
        assert torch.equal(parameter, kept[n]), n
    for layer in report.layers:
        assert 0 < layer.error < (0.01 if kind == "int8" else 0.12)
        assert layer.bytes_after < layer.bytes_before
    assert all(layer.name in str(report) for layer in report.layers)
    with torch.no_grad():
        model(ids())
    assert any(choice.op == "quantized_linear" for choice in explain(64))


def test_a_tied_head_has_its_own_copy() -> None:
    model = ss.create_model("mamba-tiny")
    assert model.tie_embeddings
    quantize(model, "int8")
    head, table = model.lm_head, model.backbone.embedding.weight
    assert isinstance(head, QuantLinear)
    torch.testing.assert_close(head.dequantize(), table.detach(), atol=float(table.detach().abs().max()) / 127, rtol=0)
    model.double()
    model.tie()
    assert model.lm_head is head
    assert head.weight.dtype == torch.int8


class Odd(nn.Module):
    """Every reason to be left."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.hooked, self.shared = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.again, self.replaced, self.skipped = self.shared, nn.Linear(8, 8), nn.Linear(8, 8)
        self.parametrised = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.done = QuantLinear(8, 8)
        self.hooked.register_forward_hook(lambda *_: None)
        self.replaced.forward = lambda x: x  # type: ignore[method-assign]


def test_says_what_it_leaves_and_why() -> None:
    model = Odd()
    report = quantize(model, "int8", skip=["skip*"])
    assert [layer.name for layer in report.layers] == ["plain"]
    assert report.left == {
        "hooked": "has hooks",
        "shared": "is one module in several places",
        "again": "is one module in several places",
        "replaced": "its forward was replaced",
        "skipped": "skipped by 'skip*'",
        "parametrised": "is parametrised",
        "done": "is quantised already, to 8 bits",
    }
    assert "left as it is: hooked: has hooks" in str(report)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="kind must be 'int8' or 'int4'; got 'int3'"):
        quantize(Odd(), "int3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the module that holds it"):
        quantize(nn.Linear(3, 3), "int8")
    with pytest.raises(ValueError, match=r"no plain nn\.Linear"):
        quantize(nn.Sequential(nn.ReLU()), "int8")
    broken = nn.Sequential(nn.Linear(3, 3))
    broken[0].weight.data[1, 1] = float("nan")
    with pytest.raises(ValueError, match="the weight of 0 is not finite"):
        quantize(broken, "int8")
    with pytest.raises(ValueError, match="group_size"):
        quantize(nn.Sequential(nn.Linear(3, 3)), "int8", group_size=100)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_comes_back_bit_for_bit(kind: Kind, tmp_path: Path) -> None:
    model = ss.create_model("mamba2-tiny").eval()
    quantize(model, kind, skip=["*.0.*"])
    ss.save_pretrained(model, tmp_path)
    loaded = ss.from_pretrained(tmp_path)
    assert linears(loaded) == linears(model)
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name
    with torch.no_grad():
        assert torch.equal(loaded(ids()), model(ids()))
    wide = ss.from_pretrained(tmp_path, dtype=torch.float64)
    assert wide.lm_head.scale.dtype == torch.bfloat16
    ss.save_pretrained(loaded, tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_faults_of_a_folder_are_named(tmp_path: Path) -> None:
    model = ss.create_model("mamba-tiny")
    quantize(model, "int4")
    ss.save_pretrained(model, tmp_path)
    config, tensors = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors")

    def expect(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ss.from_pretrained(tmp_path)

    def write(**quantization: object) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config | {"quantization": config["quantization"] | quantization}))

    write(lm_head=[4, 32])
    expect("group_size must be one of")
    write(lm_head=[8, 64])
    expect("lm_head.weight")
    write(nothing=[4, 64])
    expect("quantization names 'nothing'")
    write()
    save_file({**tensors, "lm_head.scale": tensors["lm_head.scale"].float()}, tmp_path / "model.safetensors")
    expect("lm_head.scale is torch.float32, expected torch.bfloat16")
    save_file({n: t for n, t in tensors.items() if n != "lm_head.scale"}, tmp_path / "model.safetensors")
    expect("1 missing: lm_head.scale")
    with pytest.raises(ValueError, match="cannot be exported"):
        ss.export_pretrained(model, tmp_path / "out")


def test_the_transformers_bridge_declines(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from statescan.interop import transformers_bridge as bridge

    model = ss.create_model("mamba-tiny")
    quantize(model, "int8")
    ss.save_pretrained(model, tmp_path)
    with pytest.raises(ValueError, match="takes no quantised model"):
        bridge.wrap(model)
    with pytest.raises(ValueError, match="takes no quantised model"):
        bridge.StatescanForCausalLM.from_pretrained(tmp_path)


def test_lora_trains_on_a_quantised_base() -> None:
    peft = pytest.importorskip("peft")
    model = ss.create_model("mamba-tiny")
    targets = lora_targets(model)
    quantize(model, "int4")
    assert lora_targets(model) == targets
    before = {n: t.clone() for n, t in model.state_dict().items()}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets))
    optimizer = torch.optim.Adam([p for p in wrapped.parameters() if p.requires_grad], 5e-2)
    text = ids(3, 24)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(wrapped(text)[:, :-1].flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in wrapped.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.2
    after = {n.replace("base_layer.", ""): t for n, t in wrapped.base_model.model.state_dict().items() if "lora_" not in n}
    assert all(torch.equal(after[n], t) for n, t in before.items())


def trained(folder: Path) -> Path:
    """A small byte model that has learned a little text by heart."""
    torch.manual_seed(0)
    model = ss.LanguageModel(257, 64, "M*2", parts={"M": ss.Spec("Mamba")})
    model.tokenizer = load_tokenizer("bytes")
    text = torch.tensor(list(TEXT.encode())).repeat(4)[: 8 * 96].view(8, 96)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        loss = F.cross_entropy(model(text)[:, :-1].flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1.0
    ss.save_pretrained(model, folder)
    return folder


TEXT = "A state space model carries what it has read in a vector of fixed size, and so it pays the same for every token. " * 3


def test_the_verb_writes_a_folder_and_says_what_it_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = trained(tmp_path / "source")
    (tmp_path / "text.txt").write_text(TEXT)
    for bits, bound in (("int8", 1.0), ("int4", 5.0)):
        assert main(["quantize", str(source), str(tmp_path / bits), "--bits", bits, "--data", str(tmp_path / "text.txt")]) == 0
        out = capsys.readouterr().out
        assert "lm_head" in out
        assert out.count("bits per byte") == 2
        cost = float(out.partition("perplexity of a token: ")[2].split()[0])
        assert math.isfinite(cost)
        assert abs(cost) < bound
        assert ss.from_pretrained(tmp_path / bits).lm_head.bits == int(bits[3:])
    assert main(["quantize", str(source), str(tmp_path / "x"), "--bits", "int2"]) == 2
    assert "bits must be" in capsys.readouterr().err
