"""What crosses a boundary: child to supervisor, supervisor to child, server to reader.

Everything here is a value or a function over values: it imports msgspec and the standard library alone
and does no I/O, so the child can carry it into any environment that has msgspec.
"""

PROTOCOL_VERSION = 1
"""Version of the child's event and command streams; `Ready` announces it, `Start` answers with it."""
