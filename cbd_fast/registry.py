"""Where users add backbones, losses, metrics, sampling policies and sources: for each kind a dict and a decorator.

    from cbd_fast import LOSSES

    @LOSSES.register("focal")
    def focal(*, output, labels, **_):
        ...

The name can then be used in settings and on the command line: in a script that registers before it makes its
``Config``, or with ``--plugin my_code.py``.
"""

import difflib
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, TypeVar

Entry = TypeVar("Entry", bound=Callable[..., Any])


class Registry(Mapping[str, Any]):
    """Things of one kind by name.

    Ours register themselves when the module that defines them, the registry's home, is imported; that happens at the
    first look, so that who only reads a config or makes shards need not wait for PyTorch.

    Attributes:
        kind: what is registered, in a word.
    """

    def __init__(self, kind: str, home: str) -> None:
        """``home`` is the dotted name of the module that registers ours."""
        self.kind, self._home = kind, home
        self._entries: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator that registers a function or class.

        Raises:
            ValueError: the name belongs to something else. (The same thing may come again, as a notebook's cell does.)
        """

        def add(entry: Entry) -> Entry:
            if self._home not in sys.modules:
                import_module(self._home)  # first ours, or a name of ours would be refused only later
            if (there := self._entries.get(name)) is not None and _place(there) != _place(entry):
                raise ValueError(f"{self.kind} {name!r} is registered already ({_place(there)}); choose another name")
            self._entries[name] = entry
            return entry

        return add

    def check(self, name: str) -> str:
        """The name itself.

        Raises:
            ValueError: nothing is registered under it; the message has the nearest name and all others.
        """
        if name not in self:
            close = difflib.get_close_matches(name, self, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"must be one of {', '.join(self)}, not {name!r}{hint} (your own: --plugin FILE)")
        return name

    def describe(self) -> dict[str, str]:
        """First line of each entry's docstring, by name."""
        return {name: (entry.__doc__ or "").strip().partition("\n")[0] for name, entry in self.items()}

    def __getitem__(self, name: str) -> Any:
        return self._loaded()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded())

    def __len__(self) -> int:
        return len(self._loaded())

    def _loaded(self) -> dict[str, Any]:
        import_module(self._home)
        return self._entries


def _place(entry: Any) -> str:
    return f"{entry.__module__}.{entry.__qualname__}"


SOURCES = Registry("source", "cbd_fast.shards.sources")
SAMPLING = Registry("sampling policy", "cbd_fast.loading.sampling.policies")
BACKBONES = Registry("backbone", "cbd_fast.training.models")
LOSSES = Registry("loss", "cbd_fast.training.losses")
METRICS = Registry("metric", "cbd_fast.training.metrics")
