r"""A backbone, a loss, a sampling policy, a metric and a source of one's own; nothing in the package is touched.

    cbd-fast shards --plugin examples/own_parts.py squares --out shards/squares
    cbd-fast train --plugin examples/own_parts.py --config my.yaml model.backbone=tiny stage_two.loss=focal \
        stage_two.sampling=cube_root 'metrics=[top1, worst_class]'

In a script of one's own the same lines stand before the ``Config`` that names them.
"""

import argparse
import io
from collections.abc import Iterator

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from cbd_fast import BACKBONES, LOSSES, METRICS, SAMPLING, SOURCES
from cbd_fast.loading.sampling.policies import Order, fixed_fractions
from cbd_fast.shards.sources.base import Source, SourceImage
from cbd_fast.training.metrics import Predictions, per_class_accuracy
from cbd_fast.training.models import Output


@BACKBONES.register("tiny")
def tiny() -> tuple[nn.Module, int]:
    """Two convolutions; 32 features."""
    layers = [nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 32


@LOSSES.register("focal")
def focal(*, output: Output, labels: Tensor, gamma: float = 2.0, **_: object) -> Tensor:
    """Focal loss (Lin et al., ICCV 2017, equation 4)."""
    cross_entropy = F.cross_entropy(output.logits, labels, reduction="none")
    return ((1 - (-cross_entropy).exp()) ** gamma * cross_entropy).mean()


@SAMPLING.register("cube_root")
def cube_root(starts: np.ndarray, seed: int, num_draws: int | None = None) -> Order:
    """Each class in proportion to the cube root of its images."""
    roots = np.cbrt(np.diff(starts))
    return fixed_fractions(starts, seed, roots / roots.sum())


@METRICS.register("worst_class")
def worst_class(predictions: Predictions) -> float | None:
    """Accuracy of the class that is recognised worst."""
    return float(np.nanmin(per_class_accuracy(predictions.counts))) if len(predictions.labels) else None


@SOURCES.register("squares")
class Squares:
    """Squares of three sizes, for a try."""

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """The source's own options."""
        parser.add_argument("--largest", type=int, default=40, metavar="N", help="images of the largest class")

    @staticmethod
    def open(arguments: argparse.Namespace) -> Source:
        """What the command line asks for."""

        def images() -> Iterator[SourceImage]:
            rng = np.random.default_rng(arguments.seed)
            for label, side in enumerate((4, 10, 16)):
                for split, count in (("train", arguments.largest // 2**label), ("test", 5)):
                    for number in range(count):
                        pixels = rng.integers(0, 60, (32, 32, 3), np.uint8)
                        pixels[8 : 8 + side, 8 : 8 + side] = 220
                        file = io.BytesIO()
                        Image.fromarray(pixels).save(file, format="PNG")
                        name, data = f"{side}/{number}.png", file.getvalue()
                        yield SourceImage(split=split, name=name, label=label, num_bytes=len(data), data=data)

        return Source(kind="squares", classes=["small", "middle", "large"], images=images)
