"""Events of one append ↔ the one row that holds them: for each event its name, a space, its JSON, LF."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hermetic.supervisor.store.interface import Entry, Record


def pack(records: Sequence[Record]) -> bytes:
    """Raises `ValueError` for what would break the row: a name with a space or an LF, data with an LF."""
    for name, data in records:
        if not name or " " in name or "\n" in name:
            raise ValueError(f"{name!r} is not the name of an event")
        if b"\n" in data:
            raise ValueError(f"the data of {name!r} is more than one line")
    return b"".join(b"%b %b\n" % (name.encode(), data) for name, data in records)


def unpack(first_seq: int, lines: bytes, after: int) -> Iterator[Entry]:
    """The row's events after the cursor `after`, which may lie in the middle of the row."""
    for seq, line in enumerate(lines.split(b"\n")[:-1], first_seq):
        if seq > after:
            name, _, data = line.partition(b" ")
            yield Entry(seq, name.decode(), data)
