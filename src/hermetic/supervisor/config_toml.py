"""TOML tables ↔ trees of frozen structs, with errors that name the key.

msgspec alone would say `$.agents[...]` for a fault in one of many agents, and for an unknown key not which one was
meant; so the tree is walked here, and msgspec converts the leaves, whose types carry the ranges (`Meta`).
"""

from __future__ import annotations

import ast
import difflib
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from hermetic.protocol.errors import ConfigError

T = TypeVar("T", bound=Struct)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_COMMENT_COLUMNS = 110


# --- table → structs ----------------------------------------------------------------------------------------------


def decode(table: Mapping[str, Any], kind: type[T], path: str = "") -> T:
    """A decoded TOML table → `kind`, strictly. Raises `ConfigError` with the key's path."""
    hints = _hints(kind)
    for key in table:
        if key not in hints:
            where = f"in [{path}]" if path else "at the top"
            raise ConfigError(f'{join(path, key)}: unknown key "{key}" {where}; {nearest(key, hints)}')
    for member in msgspec.structs.fields(kind):
        if member.required and member.name not in table:
            raise ConfigError(f"{join(path, member.name)}: missing")
    return kind(**{key: _value(value, hints[key], join(path, key)) for key, value in table.items()})


def _value(value: Any, kind: Any, path: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType and inspect.isclass(arguments[0]) and issubclass(arguments[0], Struct):  # SECTION | None
        kind = arguments[0]
    if inspect.isclass(kind) and issubclass(kind, Struct):
        return decode(_table(value, path), kind, path)
    if origin is dict:
        return {key: _value(item, arguments[1], join(path, key)) for key, item in _table(value, path).items()}
    if origin is list and isinstance(value, list):
        return [_value(item, arguments[0], f"{path}[{index}]") for index, item in enumerate(value)]
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        told = str(error).replace(" | null", "").replace("Expected", "expected", 1)
        # Out of range: say the number too. Of a wrong type nothing is said, it may be meant as a secret.
        raise ConfigError(f"{path}: {told}{'' if 'got' in told else f', got {value}'}") from None


def _table(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a table, got `{type(value).__name__}`")
    return value


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean "grace_s"?`, or all that are known when none is near."""
    names = list(known)
    if near := difflib.get_close_matches(word, names, n=1):
        return f'did you mean "{near[0]}"?'
    return f"known: {', '.join(names)}"


def join(path: str, key: str) -> str:
    return f"{path}.{toml_key(key)}" if path else toml_key(key)


@cache
def _hints(kind: type[Struct]) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


# --- structs → text -----------------------------------------------------------------------------------------------


@cache
def field_docs(kind: type[Struct]) -> dict[str, str]:
    """The string under each field of the class, on one line; python keeps no trace of them, the source does.

    Empty where the source is not installed: comments are lost then, values are not.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except OSError:
        return {}
    docs: dict[str, str] = {}
    name: str | None = None
    for node in getattr(tree.body[0], "body", []):
        if name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs[name] = " ".join(str(node.value.value).split())
        is_field = isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        name = node.target.id if is_field else None
    return docs


def encode(value: Struct, path: str = "") -> str:
    """Every key with its meaning as a comment; a key that is None stands there as a comment too."""
    return "\n".join(_lines(value, path)).strip() + "\n"


def _lines(value: Struct, path: str) -> Iterator[str]:
    docs = field_docs(type(value))
    members = {name: getattr(value, name) for name in value.__struct_fields__}
    tables = {name: member for name, member in members.items() if _is_table(value, name, member)}
    if path:
        yield f"\n[{path}]"
    for name, member in members.items():
        if name in tables:
            continue
        yield from textwrap.wrap(docs.get(name, ""), _COMMENT_COLUMNS, initial_indent="# ", subsequent_indent="# ")
        yield f"# {name} is not set" if member is None else f"{name} = {toml_value(member)}"
    for name, member in tables.items():
        yield from _table_lines(member, docs.get(name, ""), join(path, name))


def _table_lines(table: Struct | dict[str, Struct], doc: str, path: str) -> Iterator[str]:
    if doc:
        yield ""
        yield from textwrap.wrap(doc, _COMMENT_COLUMNS, initial_indent="# ", subsequent_indent="# ")
    if isinstance(table, Struct):
        yield from _lines(table, path)
    else:
        for name, member in table.items():
            yield from _lines(member, join(path, name))


def _is_table(owner: Struct, name: str, member: object) -> bool:
    if isinstance(member, Struct):
        return True
    arguments = get_args(_hints(type(owner))[name])
    return isinstance(member, dict) and inspect.isclass(arguments[1]) and issubclass(arguments[1], Struct)


def toml_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _toml_string(key)


def toml_value(value: Any) -> str:
    """One line of TOML 1.0 for what a TOML file can hold."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _toml_string(value)
        case int() | float():
            return repr(value)
        case datetime() | date() | time():
            return value.isoformat()
        case list():
            return f"[{', '.join(map(toml_value, value))}]"
        case dict():
            pairs = ", ".join(f"{toml_key(key)} = {toml_value(item)}" for key, item in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
    raise TypeError(f"TOML has no {type(value).__name__}")


def _toml_string(text: str) -> str:
    """JSON's escapes are TOML's, but for DEL, which TOML wants escaped as well."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
