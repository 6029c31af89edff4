"""A Spec refuses what its constructor would not take, when it is made; and it survives being data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest

from statescan.registry import create_model, list_models, lookup, models, nearest, parts, register, register_model
from statescan.spec import Spec, describe


@register
class SpecLeaf:
    def __init__(
        self,
        width: int,
        scale: float = 1.0,
        mode: Literal["sum", "mean"] = "sum",
        sizes: tuple[int, ...] = (1, 2),
        rank: int | Literal["auto"] = "auto",
        flag: bool = False,
    ) -> None:
        self.width, self.scale, self.mode, self.sizes, self.rank, self.flag = width, scale, mode, sizes, rank, flag


@register
class SpecTree:
    def __init__(
        self, leaf: Callable[[int], SpecLeaf] = Spec(SpecLeaf), parts: Mapping[str, Callable[[int], SpecLeaf]] | None = None
    ) -> None:
        self.leaf = leaf(3)
        self.parts = {name: part(5) for name, part in (parts or {}).items()}


def test_it_builds() -> None:
    leaf = Spec(SpecLeaf, scale=2)(7)
    assert (leaf.width, leaf.scale, type(leaf.scale)) == (7, 2.0, float)
    assert Spec("SpecLeaf")(1, scale=3.0).scale == 3.0
    assert Spec(SpecTree, leaf=Spec(SpecLeaf, mode="mean"))().leaf.mode == "mean"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"scales": 1.0}, "SpecLeaf has no argument 'scales'; did you mean 'scale'?"),
        ({"scale": "1"}, "SpecLeaf.scale must be float; got '1'"),
        ({"scale": True}, "SpecLeaf.scale must be float; got True"),
        ({"width": 1.5}, "SpecLeaf.width must be int; got 1.5"),
        ({"mode": "means"}, "did you mean 'mean'?"),
        ({"sizes": (1, "2")}, r"SpecLeaf.sizes[1] must be int; got '2'"),
        ({"rank": "many"}, "SpecLeaf.rank"),
        ({"flag": 1}, "SpecLeaf.flag must be bool; got 1"),
    ],
)
def test_a_wrong_argument_is_named_when_the_spec_is_made(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="SpecLeaf") as caught:
        Spec(SpecLeaf, **arguments)
    assert says in str(caught.value)


def test_a_wrong_name_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'SpecLeaf'"):
        Spec("SpecLeef")
    with pytest.raises(ValueError, match="not registered"):
        Spec(dict)
    with pytest.raises(ValueError, match="SpecLeaf has no argument 'scael'; did you mean 'scale'"):
        Spec(SpecTree, leaf={"name": "SpecLeaf", "scael": 2.0})


def test_data_round_trip() -> None:
    spec = Spec(SpecTree, leaf={"name": "SpecLeaf", "sizes": [4]}, parts={"A": "SpecLeaf", "B": Spec(SpecLeaf, rank=4)})
    data = json.loads(json.dumps(spec.to_dict()))
    assert data["leaf"] == {"name": "SpecLeaf", "scale": 1.0, "mode": "sum", "sizes": [4], "rank": "auto", "flag": False}
    again = Spec.from_dict(data)
    assert again == spec
    assert hash(again) == hash(spec)
    assert again().parts["B"].rank == 4
    assert Spec.from_dict(Spec(SpecLeaf).to_dict()) == Spec(SpecLeaf)  # defaults written out, and not
    assert Spec(SpecLeaf, mode="sum") == Spec(SpecLeaf) != Spec(SpecLeaf, mode="mean")
    with pytest.raises(ValueError, match="a mapping with a 'name'"):
        Spec.from_dict({"scale": 1.0})


def test_every_default_is_written() -> None:
    assert Spec(SpecTree).to_dict()["leaf"]["mode"] == "sum"


def test_of_a_module_remembers_its_arguments() -> None:
    assert Spec.of(SpecLeaf(4, scale=2.0)).arguments == {"width": 4, "scale": 2.0}
    assert Spec.of(Spec(SpecLeaf)) == Spec(SpecLeaf)
    with pytest.raises(ValueError, match="not registered"):
        Spec.of(object())


def test_a_factory_in_code_builds_but_cannot_be_saved() -> None:
    spec = Spec(SpecTree, leaf=lambda width: SpecLeaf(width, scale=9.0))
    assert spec().leaf.scale == 9.0
    with pytest.raises(ValueError, match=r"SpecTree\.leaf is .* cannot be saved"):
        spec.to_dict()


def test_overrides_by_dotted_path() -> None:
    spec = Spec(SpecTree, parts={"A": "SpecLeaf"})
    changed = spec.override({"leaf.scale": 2, "parts.A.mode": "mean", "parts.B": "SpecLeaf"})
    assert changed().leaf.scale == 2.0
    assert changed().parts["A"].mode == "mean"
    assert set(changed().parts) == {"A", "B"}
    assert spec().leaf.scale == 1.0
    with pytest.raises(ValueError, match="did you mean 'scale'"):
        spec.override({"leaf.scala": 2.0})
    with pytest.raises(ValueError, match="has no entry 'C'"):
        spec.override({"parts.C.scale": 2.0})
    with pytest.raises(ValueError, match="did you mean 'leaf'"):
        spec.override({"leaff.scale": 2.0})


def test_registration_refuses_what_is_no_schema() -> None:
    class Absorbs:
        def __init__(self, **kwargs: Any) -> None: ...

    with pytest.raises(TypeError, match="kwargs"):
        register(Absorbs)
    assert "Absorbs" not in parts


def test_model_names() -> None:
    try:
        register_model("spec-test-2", Spec(SpecLeaf, width=2), tiny=True)
        register_model("spec-test-10", Spec(SpecLeaf, width=10), tiny=True)
        assert list_models("spec-test*", tiny=True) == ["spec-test-2", "spec-test-10"]
        assert list_models("spec-test*") == []
        assert create_model("spec-test-2", scale=4).scale == 4.0
        with pytest.raises(ValueError, match="registered already"):
            register_model("spec-test-2", Spec(SpecLeaf))
        with pytest.raises(ValueError, match="did you mean 'spec-test-2'"):
            create_model("spec-tst-2")
    finally:
        for name in ("spec-test-2", "spec-test-10"):
            models.pop(name, None)


def test_words() -> None:
    assert describe(int | None) == "int or None"
    assert nearest("zzz", ["a", "b"]) == "; there are: a, b"
    with pytest.raises(ValueError, match="nothing is registered under 'Mambo'"):
        lookup("Mambo")
