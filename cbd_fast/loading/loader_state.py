"""Where a loader is among its epochs, as a dict that JSON can hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cbd_fast.errors import InputError


@dataclass(kw_only=True)
class EpochPass:
    """One pass of ``for images, labels in loader``.

    Attributes:
        epoch: number of the pass, from 0.
        num_yielded: batches that the loop was given so far.
    """

    epoch: int
    num_yielded: int = 0


def read_state(state: Mapping[str, Any], settings: Mapping[str, Any], num_steps: int) -> EpochPass:
    """The pass that goes on where a state was taken.

    Args:
        state: what ``Loader.state_dict`` returned.
        settings: settings of the loader that goes on on which its order of images depends.
        num_steps: steps of an epoch.

    Raises:
        InputError: no state of a loader, or one of a loader with other settings.
    """
    names = (*settings, "epoch", "num_yielded")
    if missing := [name for name in names if name not in state]:
        raise InputError(
            f"load_state_dict: the state has no {', '.join(missing)}; give what Loader.state_dict() returned"
        )
    for name, value in settings.items():
        if state[name] != value:
            raise InputError(
                f"load_state_dict: the state has {name}={state[name]!r}, the loader {name}={value!r}; "
                "that changes the order of the images, so open the loader with the value of the state"
            )
    epoch, num_yielded = state["epoch"], state["num_yielded"]
    if not (isinstance(epoch, int) and epoch >= 0 and isinstance(num_yielded, int) and 0 <= num_yielded <= num_steps):
        raise InputError(
            f"load_state_dict: epoch={epoch!r} and num_yielded={num_yielded!r}; must be integers of 0 or more, "
            f"num_yielded at most {num_steps}, the steps of an epoch"
        )
    return EpochPass(epoch=epoch, num_yielded=num_yielded)
