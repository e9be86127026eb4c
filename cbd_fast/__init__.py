"""Class-Balanced Distillation at the speed of the hardware, and the loader that makes it so.

``Loader``, ``Batch`` and ``Augmentation`` are the library; everything else serves the trainer. They are imported on
first use, so that the tools that need no torch start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cbd_fast.version import __version__

if TYPE_CHECKING:
    from cbd_fast.loading.augment import Augmentation
    from cbd_fast.loading.loader import Batch, Loader

__all__ = ["Augmentation", "Batch", "Loader", "__version__"]

_HOME = {
    "Augmentation": "cbd_fast.loading.augment",
    "Batch": "cbd_fast.loading.loader",
    "Loader": "cbd_fast.loading.loader",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
