"""AlexNet registered as a timm model, for comparison with published results.

The layers are torchvision's (Krizhevsky, 2014, "one weird trick"); timm has none of its own.
"""

from typing import Any

import torchvision
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn


class AlexNet(nn.Module):
    """Computes the features (B, 4096) of the last hidden layer, before its ReLU, as published."""

    def __init__(self, num_classes: int = 0, dropout: float = 0.5, **unused: Any) -> None:
        super().__init__()
        whole = torchvision.models.alexnet(dropout=dropout)
        self.features, self.avgpool = whole.features, whole.avgpool
        self.classifier = nn.Sequential(*list(whole.classifier)[:-2])
        self.head = nn.Linear(4096, num_classes) if num_classes else nn.Identity()
        self.num_features = 4096

    def forward(self, images: Tensor) -> Tensor:
        """Compute features of images (B, 3, S, S) float, S >= 63."""
        return self.head(self.classifier(self.avgpool(self.features(images)).flatten(1)))


default_cfgs = generate_default_cfgs(
    {
        "alexnet": {
            "input_size": (3, 224, 224),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "num_classes": 0,
        }
    }
)


@register_model
def alexnet(pretrained: bool = False, **options: Any) -> nn.Module:
    """Build AlexNet; it has no pretrained weights on timm's hub."""
    return build_model_with_cfg(AlexNet, "alexnet", pretrained, **options)
