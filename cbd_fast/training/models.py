"""Backbones, and the cosine classifier with its normalised features that both stages train.

After the official code of Class-Balanced Distillation (Iscen et al., BMVC 2021).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from cbd_fast.registry import BACKBONES

COSINE_SCALE = 20.0  # fixed, not learned


class Output(NamedTuple):
    """What a model returns.

    Attributes:
        features: ``(B, D)`` float32 of length 1.
        logits: ``(B, num_classes)`` float32.
    """

    features: Tensor
    logits: Tensor


class CosineModel(nn.Module):
    """A backbone, an optional projection, normalisation, and a cosine classifier.

    ``features = normalize(p(backbone(images)))``, where p is ``relu(Linear(d, projected_dim))`` or nothing, and
    ``logits = 20 * features @ normalize(weight)``.
    """

    def __init__(self, backbone: nn.Module, feature_dim: int, num_classes: int, projected_dim: int | None = None):
        """Builds the head.

        Args:
            backbone: from ``(B, 3, H, W)`` to ``(B, feature_dim)``.
            feature_dim: width of the backbone's features.
            num_classes: width of the classifier.
            projected_dim: width of the projection, which a student has whose teachers' target is of another width.
        """
        super().__init__()
        self.backbone = backbone
        self.projection = nn.Linear(feature_dim, projected_dim) if projected_dim else None
        self.feature_dim = projected_dim or feature_dim
        self.weight = nn.Parameter(torch.empty(self.feature_dim, num_classes))
        nn.init.xavier_uniform_(self.weight)
        if self.projection is not None:  # as in the official code, not as in torch
            nn.init.xavier_uniform_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)

    def forward(self, images: Tensor) -> Output:
        features = self.embed(images)
        with torch.autocast(images.device.type, enabled=False):  # half precision is too coarse for cosines near 1
            logits = COSINE_SCALE * features @ F.normalize(self.weight, dim=0)
        return Output(features, logits)

    def embed(self, images: Tensor) -> Tensor:
        """``(B, feature_dim)`` float32 features of length 1 of ``(B, 3, H, W)`` images."""
        pooled = self.backbone(images)
        if self.projection is not None:
            pooled = F.relu(self.projection(pooled))
        with torch.autocast(images.device.type, enabled=False):
            return F.normalize(pooled.float(), dim=1)


class Teachers(nn.Module):
    """Finished models whose joined features a student follows; always in eval mode, never with gradients."""

    def __init__(self, models: Sequence[CosineModel]):
        super().__init__()
        self.models = nn.ModuleList(models).requires_grad_(False).eval()
        self.feature_dim = sum(model.feature_dim for model in models)
        self.eval()

    def __iter__(self) -> Iterator[CosineModel]:
        return (cast(CosineModel, model) for model in self.models)

    def train(self, mode: bool = True) -> "Teachers":
        """Stays in eval mode whatever is asked: batch statistics of a class-balanced batch would be wrong here."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """``(B, feature_dim)`` float32: the models' features, concatenated and normalised again."""
        return F.normalize(torch.cat([model.embed(images) for model in self], dim=1), dim=1)


def build_model(backbone: str, num_classes: int, target_dim: int | None = None) -> CosineModel:
    """A model with fresh weights.

    Args:
        backbone: a name of ``BACKBONES``.
        num_classes: width of the classifier.
        target_dim: width of the teachers' target; if it is not the backbone's, the model projects to it.
    """
    module, feature_dim = BACKBONES[backbone]()
    return CosineModel(module, feature_dim, num_classes, target_dim if target_dim != feature_dim else None)


class CifarBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut without parameters (option A of He et al., CVPR 2016)."""

    def __init__(self, num_in: int, num_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.stride, self.num_added = stride, num_out - num_in

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x
        if self.num_added:
            before = self.num_added // 2
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.num_added - before))
        return F.relu(out + shortcut)


class CifarResNet(nn.Module):
    """The ResNet of He et al. (CVPR 2016) for CIFAR, of 6n + 2 layers: ``(B, 3, 32, 32)`` to ``(B, 64)``."""

    def __init__(self, num_blocks: int):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        blocks, num_in = [], 16
        for num_out, first_stride in ((16, 1), (32, 2), (64, 2)):
            for number in range(num_blocks):
                blocks.append(CifarBlock(num_in, num_out, first_stride if number == 0 else 1))
                num_in = num_out
        self.blocks = nn.Sequential(*blocks)
        _init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)).mean(dim=(2, 3))


class SmallConvNet(nn.Sequential):
    """Five 3 x 3 convolutions for tiny images: ``(B, 3, H, W)`` to ``(B, 128)``."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        num_in = 3
        for num_out, stride in ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
            layers += [
                nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False),
                nn.BatchNorm2d(num_out),
                nn.ReLU(),
            ]
            num_in = num_out
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        _init_convolutions(self)


def _init_convolutions(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def _torchvision_resnet(name: str) -> tuple[nn.Module, int]:
    """A residual network without its classifier, begun as in the official code.

    Convolutions are Glorot-uniform, and blocks begin as identities (last batch-norm zero).
    """
    network = torchvision.models.get_model(name, weights=None, zero_init_residual=True)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
    feature_dim = network.fc.in_features
    network.fc = nn.Identity()
    return network, feature_dim


# A registered backbone is a function without arguments that returns a module with fresh weights, from (B, 3, H, W)
# float32 images to (B, feature_dim) features, and feature_dim.


@BACKBONES.register("resnet18")
def resnet18() -> tuple[nn.Module, int]:
    """Torchvision's ResNet-18 (He et al., CVPR 2016), begun as in the official code; 512 features."""
    return _torchvision_resnet("resnet18")


@BACKBONES.register("resnet34")
def resnet34() -> tuple[nn.Module, int]:
    """Torchvision's ResNet-34, begun as in the official code; 512 features."""
    return _torchvision_resnet("resnet34")


@BACKBONES.register("resnet50")
def resnet50() -> tuple[nn.Module, int]:
    """Torchvision's ResNet-50, begun as in the official code; 2048 features."""
    return _torchvision_resnet("resnet50")


@BACKBONES.register("resnet101")
def resnet101() -> tuple[nn.Module, int]:
    """Torchvision's ResNet-101, begun as in the official code; 2048 features."""
    return _torchvision_resnet("resnet101")


@BACKBONES.register("resnet152")
def resnet152() -> tuple[nn.Module, int]:
    """Torchvision's ResNet-152, begun as in the official code; 2048 features."""
    return _torchvision_resnet("resnet152")


@BACKBONES.register("resnet32")
def resnet32() -> tuple[nn.Module, int]:
    """The ResNet-32 of He et al. for CIFAR; 64 features."""
    return CifarResNet(num_blocks=5), 64


@BACKBONES.register("small_convnet")
def small_convnet() -> tuple[nn.Module, int]:
    """Five convolutions for tiny images; 128 features."""
    return SmallConvNet(), 128
