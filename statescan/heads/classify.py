"""Classification: features to class scores, and the model that puts such a head on a pyramid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from statescan.backbones.pyramid import Pyramid
from statescan.layers.linear import Linear
from statescan.layers.vision import init_linears
from statescan.parameters import parameter_groups
from statescan.registry import register
from statescan.spec import Spec


@register
class Classifier(nn.Module):
    """LayerNorm, the mean over all positions, dropout, a Linear: features (B, ..., D) -> scores (B, num_classes).

    With ``num_classes=0`` the pooled features (B, D) come out.
    """

    def __init__(self, d_model: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 (pooled features) or more; got {num_classes}")
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.fc = Linear(d_model, num_classes) if num_classes else None
        init_linears(self)

    def forward(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Scores; with ``pre_logits`` the pooled features that the Linear would see."""
        pooled = self.dropout(self.norm(features).flatten(1, -2).mean(1))
        return pooled if pre_logits or self.fc is None else self.fc(pooled)

    def loss(self, output: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy in nats; target is class numbers (B,), or probabilities (B, num_classes) as mixing augmentations make them."""
        return F.cross_entropy(output.float(), target, label_smoothing=label_smoothing)


@register
class ImageClassifier(nn.Module):
    """A pyramid with a classifier on its last stage, under the verbs that vision code knows. Images and maps are (B, C, H, W).

    Args:
        num_classes: classes; 0 gives pooled features.
        backbone: factory of the pyramid, given ``in_chans``, and ``drop_path_rate`` by keyword.
        in_chans: channels of the image.
        drop_path_rate: stochastic depth, of the last block.
        drop_rate: dropout before the last Linear.
        features_only: no classifier; a call gives the maps of the stages in ``out_indices``.
        out_indices: stages, from 0; negative numbers count from the last.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        backbone: Callable[..., Pyramid] = Spec(Pyramid),
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        features_only: bool = False,
        out_indices: tuple[int, ...] = (0, 1, 2, 3),
    ) -> None:
        super().__init__()
        self.num_classes, self.features_only = num_classes, features_only
        self.backbone = backbone(in_chans, drop_path_rate=drop_path_rate)
        info = self.backbone.feature_info
        if features_only and (not out_indices or any(not -len(info) <= i < len(info) for i in out_indices)):
            raise ValueError(f"out_indices must name stages 0 to {len(info) - 1}; got {out_indices}")
        self.out_indices = tuple(i % len(info) for i in out_indices) if features_only else (len(info) - 1,)
        self.feature_info: list[dict[str, Any]] = [{**info[i], "module": f"backbone.{info[i]['module']}"} for i in self.out_indices]
        self.num_features: int = info[-1]["num_chs"]
        self.head = None if features_only else Classifier(self.num_features, num_classes, drop_rate)

    def forward(self, images: Tensor) -> Any:
        """Scores (B, num_classes), or with ``features_only`` a list of maps (B, D, h, w)."""
        if self.features_only:
            maps = self.backbone(images, all_stages=True)
            return [maps[i].permute(0, 3, 1, 2) for i in self.out_indices]
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The last stage's map, (B, D, h, w), before the classifier's norm."""
        return self.backbone(images).permute(0, 3, 1, 2)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Scores of what :meth:`forward_features` gave; with ``pre_logits`` its pooled features."""
        if self.head is None:
            raise ValueError("a model made with features_only has no head: make one without it")
        return self.head(features.permute(0, 2, 3, 1), pre_logits=pre_logits)

    def loss(self, output: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The classifier's."""
        if self.head is None:
            raise ValueError("a model made with features_only has no loss: make one without it")
        return self.head.loss(output, target, label_smoothing)

    def parameter_groups(self, weight_decay: float = 0.05, lr: float | None = None) -> list[dict[str, Any]]:
        """Optimiser groups: dynamics, norms and biases without weight decay; some parameters with a rate of their own."""
        return parameter_groups(self, weight_decay=weight_decay, lr=lr)
