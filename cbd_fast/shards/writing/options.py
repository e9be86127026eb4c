"""What a dataset is to be made into, and who hears of it while it is made."""

from dataclasses import asdict, dataclass, field
from typing import Any

from cbd_fast.shards.long_tail import LongTail
from cbd_fast.shards.writing.validate_image import ImageRules


@dataclass(frozen=True, kw_only=True)
class ShardSize:
    """Where one shard ends and the next begins: at whichever limit comes first.

    Attributes:
        num_bytes: bytes of the images of a shard.
        num_images: images of a shard.
    """

    num_bytes: int = 100 * 10**6
    num_images: int = 5000


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """What a dataset is made into.

    Attributes:
        seed: chooses the images of a long tail, and shuffles all images over the shards.
        size: limits of a shard.
        rules: how images are checked and stored.
        tail: the long tail to make of the training split, or None.
        preset: name of the published dataset that it must be, or None.
        max_bad_fraction: fraction of the images; if more cannot be used, that is an error at once.
        is_whole: whether any image that cannot be used is an error in the end.
    """

    seed: int = 0
    size: ShardSize = field(default_factory=ShardSize)
    rules: ImageRules = field(default_factory=ImageRules)
    tail: LongTail | None = None
    preset: str | None = None
    max_bad_fraction: float = 0.01
    is_whole: bool = False

    def num_bad_allowed(self, total: int) -> int:
        """Images of ``total`` that may be left out before the command ends at once."""
        return int(self.max_bad_fraction * total)

    def recipe_options(self) -> dict[str, Any]:
        """What decides about the bytes of the shards, for the recipe."""
        options: dict[str, Any] = {"shard_bytes": self.size.num_bytes, "shard_images": self.size.num_images}
        tail = {} if self.tail is None else asdict(self.tail)
        rules = {name: value for name, value in asdict(self.rules).items() if value is not False}
        return options | rules | tail


class WriteListener:
    """Hears what happens while a dataset is written; this one ignores it."""

    def note(self, message: str) -> None:
        """Hears something that a person should know."""

    def start(self, num_images: int) -> None:
        """Hears how many images are to be looked at."""

    def update(self, num_images: int) -> None:
        """Hears how many images were looked at so far."""
