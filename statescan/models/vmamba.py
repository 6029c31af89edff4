"""VMamba: image backbones of SS2D blocks, the nine published configurations, and the names of their checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from statescan.backbones.pyramid import Pyramid
from statescan.blocks.vss import VSSBlock
from statescan.heads.classify import ImageClassifier
from statescan.layers.vision import ConvDownsample, ConvStem, PatchMerge, PatchStem
from statescan.mixers.ss2d import SS2D
from statescan.registry import Family, register_model
from statescan.spec import Spec

FAMILY = Family(
    name="vmamba",
    introduces=("SS2D",),
    title="VMamba: Visual State Space Model",
    url="https://arxiv.org/abs/2401.10166",
    bibtex="""@inproceedings{liu2024vmamba,
  title={{VM}amba: Visual State Space Model},
  author={Liu, Yue and Tian, Yunjie and Zhao, Yuzhong and Yu, Hongtian and Xie, Lingxi and Wang, Yaowei and Ye, Qixiang and Jiao, Jianbin and Liu, Yunfan},
  booktitle={Advances in Neural Information Processing Systems},
  year={2024}
}""",  # noqa: E501
    exact="Blocks, the four-route scan, stems, initialisation and the nine parameter counts; state dicts under the original names load.",
    deviates="The first stem pads an image whose sides 4 does not divide, where the original drops the last rows and columns. "
    "The step's projection keeps its own initialisation; the original's one-file version overwrites it.",
)

IMAGENET: dict[str, Any] = {"input_size": (3, 224, 224), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def vanilla(dims: int, depths: tuple[int, ...], drop_path_rate: float, num_classes: int = 1000) -> Spec[ImageClassifier]:
    """The first form: gate, 16 states, no MLP, patches that do not overlap."""
    block = Spec(VSSBlock, mixer=Spec(SS2D), mlp_ratio=0.0)
    pyramid = Spec(Pyramid, dims=dims, depths=depths, block=block, stem=Spec(PatchStem), downsample=Spec(PatchMerge))
    return Spec(ImageClassifier, num_classes=num_classes, backbone=pyramid, drop_path_rate=drop_path_rate)


def final(dims: int, depths: tuple[int, ...], ssm_ratio: float, drop_path_rate: float, num_classes: int = 1000) -> Spec[ImageClassifier]:
    """The final form: no gate, 1 state, an MLP in every block, overlapping convolutions between stages."""
    block = Spec(VSSBlock, mixer=Spec(SS2D, d_state=1, ssm_ratio=ssm_ratio, gate=False, conv_bias=False), mlp_ratio=4.0)
    pyramid = Spec(Pyramid, dims=dims, depths=depths, block=block, stem=Spec(ConvStem), downsample=Spec(ConvDownsample))
    return Spec(ImageClassifier, num_classes=num_classes, backbone=pyramid, drop_path_rate=drop_path_rate)


_PUBLISHED = (
    # name, recipe, parameters with the 1000-way head, multiply-adds as published (in 10^9), ImageNet-1k top-1
    ("vanilla-tiny", vanilla(96, (2, 2, 9, 2), 0.2), 22_893_448, 5.6, 82.2),
    ("vanilla-small", vanilla(96, (2, 2, 27, 2), 0.3), 44_417_416, 11.2, 83.5),
    ("vanilla-base", vanilla(128, (2, 2, 27, 2), 0.6), 76_254_056, 18.0, 83.7),
    ("tiny-s2l5", final(96, (2, 2, 5, 2), 2.0, 0.2), 30_705_832, 4.9, 82.5),
    ("small-s2l15", final(96, (2, 2, 15, 2), 2.0, 0.3), 50_147_752, 8.7, 83.6),
    ("base-s2l15", final(128, (2, 2, 15, 2), 2.0, 0.6), 88_557_800, 15.4, 83.9),
    ("tiny-s1l8", final(96, (2, 2, 8, 2), 1.0, 0.2), 30_249_064, 4.9, 82.6),
    ("small-s1l20", final(96, (2, 2, 20, 2), 1.0, 0.3), 49_012_840, 8.6, 83.3),
    ("base-s1l20", final(128, (2, 2, 20, 2), 1.0, 0.5), 86_614_504, 15.2, 83.8),
)

for _name, _spec, _count, _gmacs, _top1 in _PUBLISHED:
    register_model(f"vmamba-{_name}", _spec, family=FAMILY, parameters=_count, gmacs=_gmacs, imagenet_top1=_top1, **IMAGENET)

register_model("vmamba-vanilla-test", vanilla(8, (1, 1, 2, 1), 0.1, num_classes=5), family=FAMILY, tiny=True, input_size=(3, 40, 48))
register_model("vmamba-test", final(8, (1, 1, 2, 1), 1.0, 0.1, num_classes=5), family=FAMILY, tiny=True, input_size=(3, 40, 48))


_BLOCK = r"^layers\.(\d+)\.blocks\.(\d+)\."
_DOWN = r"^layers\.(\d+)\.downsample\."
KEY_MAP: tuple[tuple[str, str], ...] = (
    # names of the first releases, which their later code still renames
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (_BLOCK + r"ln_1\.", r"layers.\1.blocks.\2.norm."),
    (_BLOCK + r"self_attention\.", r"layers.\1.blocks.\2.op."),
    (r"^(norm|head)\.", r"classifier.\1."),
    # stems: the numbers are places in a Sequential, and what stands there depends on the kind
    (r"^patch_embed\.0\.", "backbone.stem.{stem_0}."),
    (r"^patch_embed\.2\.", "backbone.stem.{stem_2}."),
    (r"^patch_embed\.5\.", "backbone.stem.conv2."),
    (r"^patch_embed\.7\.", "backbone.stem.norm2."),
    # blocks; the one-file version holds the grouped projections as modules, the others as bare parameters
    (_BLOCK + r"op\.(x_proj|dt_projs)_(weight|bias)$", r"backbone.stages.\1.blocks.\2.mixer.\3.\4"),
    (_BLOCK + r"op\.", r"backbone.stages.\1.blocks.\2.mixer."),
    (_BLOCK, r"backbone.stages.\1.blocks.\2."),
    # downsampling: places again; the classification package has names for the patch merger instead
    (_DOWN + r"1\.", r"backbone.stages.\1.downsample.{down_1}."),
    (_DOWN + r"2\.", r"backbone.stages.\1.downsample.reduction."),
    (_DOWN + r"3\.", r"backbone.stages.\1.downsample.norm."),
    (_DOWN, r"backbone.stages.\1.downsample."),
    (r"^classifier\.norm\.", "head.norm."),
    (r"^classifier\.head\.", "head.fc."),
)
"""Original name -> ours: regular expressions, tried in order, each applied to what the one before it left."""


def convert_state_dict(original: Mapping[str, Tensor], model: ImageClassifier) -> dict[str, Tensor]:
    """A state dict under the original names as one for ``model``: load it with ``model.load_state_dict(...)``, which is strict.

    A file of the project holds it under ``"model"``: ``torch.load(path, weights_only=True)["model"]``. Names, shapes and results were
    compared with the published code (the classification package and the one-file version) on random weights; no released file was at
    hand, so reading one is unverified.

    Channels-first variants store a Linear as a 1x1 convolution, and the one-file version stacks grouped projections on rows: such a
    tensor is reshaped; any other difference of shape is left for ``load_state_dict`` to name.
    """
    two_convolutions = any(key.startswith("patch_embed.5.") for key in original)
    patch_merger = any(re.match(_DOWN + r"2\.", key) for key in original)
    places = {
        "stem_0": "conv1" if two_convolutions else "conv",
        "stem_2": "norm1" if two_convolutions else "norm",
        "down_1": "norm" if patch_merger else "conv",
    }
    expected = model.state_dict()
    converted: dict[str, Tensor] = {}
    for key, tensor in original.items():
        name = key
        for pattern, replacement in KEY_MAP:
            name = re.sub(pattern, replacement.format(**places), name)
        if name in converted:
            raise ValueError(f"two names of the checkpoint stand for {name!r}; the second is {key!r}")
        target = expected.get(name)
        converted[name] = tensor if target is None else _fit(tensor, target)
    return converted


def _fit(tensor: Tensor, target: Tensor) -> Tensor:
    if tensor.ndim == 4 and target.ndim < 4 and tensor.shape[2:] == (1, 1):
        tensor = tensor.flatten(1)
    if target.ndim == 3 and tensor.shape == target.flatten(0, 1).shape:
        tensor = tensor.reshape(target.shape)
    return tensor
