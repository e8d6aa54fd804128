"""The tables of docs/protocol.md, made from the structs: `python -m hermetic.protocol.reference docs/protocol.md`.

Rewrites what stands between the marks of each table and leaves the prose alone. A test holds the file to it.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec

from hermetic.protocol import commands, events
from hermetic.protocol.operations import OPERATIONS
from hermetic.protocol.schema import member_docs, tag_of


def fill(page: str) -> str:
    """The page with every table made anew. Raises `KeyError` for a mark that names no table."""
    made = tables()
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)",
        lambda found: f"{found[1]}\n{made[found[2]]}\n{found[3]}",
        page,
        flags=re.DOTALL,
    )


def tables() -> dict[str, str]:
    """Name of a table → its Markdown."""
    private = [kind for kind in get_args(events.ChildEvent) if kind not in get_args(events.ForwardedEvent)]
    return {
        "private": _messages(private),
        "forwarded": _messages(get_args(events.ForwardedEvent)),
        "supervisor": _messages(get_args(events.SupervisorEvent)),
        "stream": _messages(get_args(events.StreamEvent)),
        "commands": _messages(get_args(commands.AnyCommand)),
        "parts": _rows(
            ("struct", "meaning", "members"),
            [
                (f"`{kind.__name__}`", _says(kind), _members(kind))
                for kind in (events.Usage, events.Seal, events.ToolCall, events.Snapshot)
            ],
        ),
        "words": _rows(
            ("type", "values"),
            [
                ("`Choice`", _words(events.Choice)),
                ("`Verdict`", _words(events.Verdict)),
                ("`StateName`", _words(events.StateName)),
                ("`Count`", "a whole number from 0 to 2^53 - 1"),
                ("`Dollars`", "US dollars, not negative"),
            ],
        ),
        "operations": _rows(
            ("operation", "what it does", "answers"),
            [
                (
                    f"`{operation.method.upper()} {operation.path}`",
                    f"{operation.summary}. {operation.detail}".strip(),
                    ", ".join(str(status) for status in operation.answers),
                )
                for operation in OPERATIONS
            ],
        ),
    }


def _messages(kinds: Any) -> str:
    return _rows(("name", "meaning", "members"), [(f"`{tag_of(kind)}`", _says(kind), _members(kind)) for kind in kinds])


def _says(kind: type[msgspec.Struct]) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split())


def _words(kind: Any) -> str:
    return ", ".join(f"`{word}`" for word in get_args(kind))


def _members(kind: type[msgspec.Struct]) -> str:
    """Each member as it stands in the source, with the sentence below it."""
    docs = member_docs(kind)
    body = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(body, ast.ClassDef)
    members = []
    for member in body.body:
        if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            name = member.target.id
            default = "" if member.value is None else f" = {_default(member.value)}"
            says = f" {' '.join(docs[name].split())}" if name in docs else ""
            members.append(f"`{name}: {_code(member.annotation)}{default}`{says}")
    return "<br>".join(members)


def _default(value: ast.expr) -> str:
    """`field(default_factory=list)` → `[]`, and so on for the factories in use."""
    match value:
        case ast.Call(keywords=[ast.keyword(value=ast.Name(id=factory))]):
            return {"list": "[]", "dict": "{}"}.get(factory, f"{factory}()")
        case ast.Call(keywords=[ast.keyword(value=ast.Lambda(body=body))]):
            return _code(body)
    return _code(value)


def _code(node: ast.expr) -> str:
    return ast.unparse(node).replace("'", '"')


def _rows(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(fill(path.read_text(encoding="utf-8")), encoding="utf-8")
