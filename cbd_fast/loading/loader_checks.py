"""Settings of a loader, checked before anything is opened."""

from collections.abc import Mapping

from cbd_fast.errors import InputError
from cbd_fast.loading.batch_decoder import DECODERS
from cbd_fast.loading.sampling.policies import check_sampling


def check_settings(
    sampling: str,
    decoder: str,
    max_bad_fraction: float,
    batch_size: int,
    world_size: int,
    counts: Mapping[str, int | None],
) -> None:
    """Refuses what no loader can have; ``counts`` are settings that must be at least 1 where they are given.

    Raises:
        InputError: a setting cannot be used.
    """
    check_sampling(sampling)
    if decoder not in DECODERS:
        raise InputError(f"decoder={decoder!r}: must be one of {', '.join(DECODERS)}")
    for name, count in {"batch_size": batch_size, **counts}.items():
        if count is not None and count < 1:
            raise InputError(f"{name}={count}: must be at least 1")
    if batch_size % world_size:
        raise InputError(f"batch_size={batch_size}: must be a multiple of the {world_size} processes, which share it")
    if not 0 <= max_bad_fraction <= 1:
        raise InputError(f"max_bad_fraction={max_bad_fraction:g}: must be from 0 to 1, a fraction of the images")
