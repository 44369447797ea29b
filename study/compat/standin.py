"""Stand-ins for what is not read: libraries, devices, compiled kernels.

A stand-in can be named, called and passed on, but never decided upon: the first `if` that would
depend on one raises `Undecided`, which names it. So a result that was reached without one rests
on the engine's own source and on planted facts alone, and everything else is unknown, not guessed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn


class Undecided(BaseException):
    """A decision would rest on something that was not read.

    Not an Exception, so that the engine's own `except Exception` cannot swallow it.
    """


class Unknown:
    """Something known by name only."""

    def __init__(self, path: str) -> None:
        self.__dict__["path"] = path

    def __getattr__(self, name: str) -> Unknown:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        child = Unknown(f"{self.path}.{name}")
        self.__dict__[name] = child  # the same thing is always the same object
        return child

    def __call__(self, *_: object, **__: object) -> Unknown:
        return Unknown(f"{self.path}()")

    def __getitem__(self, _: object) -> Unknown:
        return Unknown(f"{self.path}[...]")

    def __setitem__(self, *_: object) -> None:
        return None

    def __mro_entries__(self, _: object) -> tuple[type, ...]:
        return ()

    def __enter__(self) -> Unknown:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<{self.path}>"

    def _undecided(self, *_: object) -> NoReturn:
        raise Undecided(self.path)

    __bool__ = __lt__ = __le__ = __gt__ = __ge__ = _undecided
    __iter__ = __len__ = __contains__ = __int__ = __index__ = __float__ = _undecided
    __instancecheck__ = __subclasscheck__ = _undecided

    def __eq__(self, other: object) -> bool:
        return self is other or self._undecided()

    def __ne__(self, other: object) -> bool:
        return self is not other and self._undecided()

    def _unknown(self, *_: object) -> Unknown:
        return Unknown(f"({self.path} ...)")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _unknown
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _unknown
    __or__ = __ror__ = __and__ = __rand__ = __pow__ = __rpow__ = __neg__ = __invert__ = _unknown
    __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = _unknown


class Planted:
    """An object with the given attributes, each a stated fact; every other one is unknown."""

    def __init__(self, path: str, **facts: Any) -> None:
        self.__dict__.update(facts)
        self.__dict__["path"] = path

    def __getattr__(self, name: str) -> Unknown:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Unknown(f"{self.path}.{name}")


@dataclass(frozen=True)
class Said:
    """A line that the engine logged, and where."""

    words: str
    file: str
    line: int


@dataclass
class Log:
    """Stands for every logger of the engine, and keeps what it says."""

    said: list[Said] = field(default_factory=list)

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._note if name.startswith(("info", "warning")) else _ignore

    def _note(self, message: object, *values: object, **_: object) -> None:
        words = str(message) % values if values else str(message)
        frame = sys._getframe(1)
        self.said.append(Said(words, frame.f_code.co_filename, frame.f_lineno))


def _ignore(*_: object, **__: object) -> None:
    return None


def as_decorator(decorator: object) -> object:
    """The decorator; one that is unknown leaves what it decorates as it is."""
    return (lambda decorated: decorated) if isinstance(decorator, Unknown) else decorator
