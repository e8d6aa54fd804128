"""Strategies for the protocol's values, and bytes in any split."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
from hypothesis import strategies as st

from hermetic.protocol import commands, events

# Everything that UTF-8 carries, with the characters that break naive line readers made likely.
TEXT = st.text(
    st.one_of(
        st.sampled_from('\n\r\t\0\x0b\x0c\x1c\x85\u2028\u2029\ufeff\\"{}[]:,é€🦀\U0010ffff'),
        st.characters(exclude_categories=["Cs"]),
    )
)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | FLOAT | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values that a field of type `kind` can hold, from msgspec's own view of the type."""
    return _values(msgspec.inspect.type_info(kind))


def _values(info: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
    match info:
        case msgspec.inspect.AnyType():
            return JSON
        case msgspec.inspect.StrType():
            return TEXT
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.IntType():
            low = -(2**63) if info.ge is None else info.ge
            return st.integers(low, 2**64 - 1 if info.le is None else info.le)
        case msgspec.inspect.FloatType():
            return st.floats(info.ge, allow_nan=False, allow_infinity=False)
        case msgspec.inspect.LiteralType():
            return st.sampled_from(info.values)
        case msgspec.inspect.ListType():
            return st.lists(_values(info.item_type), max_size=4)
        case msgspec.inspect.DictType():
            return st.dictionaries(_values(info.key_type), _values(info.value_type), max_size=4)
        case msgspec.inspect.UnionType():
            return st.one_of([_values(kind) for kind in info.types])
        case msgspec.inspect.StructType():
            return st.builds(info.cls, **{field.name: _values(field.type) for field in info.fields})
    raise NotImplementedError(info)


CHILD_EVENTS = get_args(events.ChildEvent)
READER_EVENTS = get_args(events.ReaderEvent)
ALL_EVENTS = tuple(dict.fromkeys(READER_EVENTS + CHILD_EVENTS))
COMMANDS = get_args(commands.AnyCommand)


@st.composite
def in_any_split(draw: st.DrawFn, source: st.SearchStrategy[bytes]) -> tuple[bytes, list[bytes]]:
    """→ (the bytes, the same bytes in chunks); one byte at a time is always among what is tried."""
    data = draw(source)
    if draw(st.booleans()):
        return data, [data[i : i + 1] for i in range(len(data))]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return data, [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
