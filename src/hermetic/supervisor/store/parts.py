"""What a `SqliteStore` gives its parts, each of which has tables of its own: its own reading and writing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import apsw

T = TypeVar("T")


class Read(Protocol):
    def __call__(self, query: Callable[[apsw.Connection], T]) -> Awaitable[T]: ...


class Write(Protocol):
    def __call__(self, change: Callable[[apsw.Connection], T], *, durable: bool = True) -> Awaitable[T]: ...
