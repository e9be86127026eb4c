"""Class-Balanced Distillation at the speed of the hardware, and the loader that makes it so.

    from cbd_fast import Config, Loader, Predictor, Trainer, load_model

Names are imported on first use, so that what needs no PyTorch starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cbd_fast.version import __version__

if TYPE_CHECKING:
    from cbd_fast.config.schema import Config
    from cbd_fast.errors import InputError, RunError
    from cbd_fast.inference.load_model import load_model
    from cbd_fast.inference.predictor import Predictor
    from cbd_fast.loading.augment import Augmentation
    from cbd_fast.loading.batch import Batch
    from cbd_fast.loading.loader import Loader
    from cbd_fast.registry import BACKBONES, LOSSES, METRICS, SAMPLING, SOURCES
    from cbd_fast.training.trainer import Trainer

__all__ = [
    "BACKBONES",
    "LOSSES",
    "METRICS",
    "SAMPLING",
    "SOURCES",
    "Augmentation",
    "Batch",
    "Config",
    "InputError",
    "Loader",
    "Predictor",
    "RunError",
    "Trainer",
    "__version__",
    "load_model",
]

_HOME = {
    "Augmentation": "cbd_fast.loading.augment",
    "Batch": "cbd_fast.loading.batch",
    "Config": "cbd_fast.config.schema",
    "InputError": "cbd_fast.errors",
    "Loader": "cbd_fast.loading.loader",
    "Predictor": "cbd_fast.inference.predictor",
    "RunError": "cbd_fast.errors",
    "Trainer": "cbd_fast.training.trainer",
    "load_model": "cbd_fast.inference.load_model",
    **dict.fromkeys(("BACKBONES", "LOSSES", "METRICS", "SAMPLING", "SOURCES"), "cbd_fast.registry"),
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
