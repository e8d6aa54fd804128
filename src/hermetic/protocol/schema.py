"""Schemas made from the structs: a JSON Schema of the events, and the OpenAPI document of the HTTP API.

msgspec knows types and defaults. The sentences come from the sources: a string below a member documents it, and only
the sources have it; where they are not there (a frozen program), the schemas say less and mean the same.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any, get_args

import msgspec

from hermetic import __version__
from hermetic.protocol import PROTOCOL_VERSION, api, events
from hermetic.protocol.operations import EVENT_STREAM, OPERATIONS, PATH_PARAMS, Answer, Content, Operation, Param

__all__ = ["OPERATIONS", "Operation", "json_schema", "member_docs", "openapi"]

Json = dict[str, Any]
PROBLEM = "application/problem+json"


def json_schema() -> Json:
    """JSON Schema 2020-12 of one event, any that a child may say or a reader can meet.

    `$defs` holds each event under its struct's name, and the families `ChildEvent` and `ReaderEvent`.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Events of Hermetic, protocol {PROTOCOL_VERSION}",
        "description": "One event: the JSON of a `data:` line, or one line of a child's event stream.",
        "anyOf": [{"$ref": "#/$defs/ChildEvent"}, {"$ref": "#/$defs/ReaderEvent"}],
        "$defs": _components({"ChildEvent": events.ChildEvent, "ReaderEvent": events.ReaderEvent}, "#/$defs/{name}"),
    }


def openapi(operations: Iterable[Operation] = OPERATIONS) -> Json:
    """The OpenAPI 3.1 document of `operations`.

    OpenAPI 3.1 has no word for the items of a stream. So the schema of a `text/event-stream` is that of one event's
    data, and `x-sse-events` maps each event's name to its own.
    """
    operations = tuple(operations)
    named: dict[str, Any] = {"Problem": api.Problem, "ReaderEvent": events.ReaderEvent}
    named |= {kind.__name__: kind for kind in get_args(events.TenantEvent)}
    for operation in operations:
        for kind in (operation.request, *(c.kind for answer in operation.answers.values() for c in answer.contents)):
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                named[kind.__name__] = kind
    paths: dict[str, Json] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Hermetic",
            "version": __version__,
            "summary": "Every chat turn of an agent in its own child process, streamed to any number of readers.",
            "description": "All errors are RFC 9457 problem documents with `code`, `fault` and `hint`.",
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in operations) if tag],
        "paths": paths,
        "components": {
            "schemas": _components(named, "#/components/schemas/{name}", readers=True),
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key of this server, or a token of its identity provider. Without tenants: none.",
                },
                "login": {"type": "apiKey", "in": "cookie", "name": "hermetic_login"},
            },
        },
    }


def _operation(operation: Operation) -> Json:
    made: Json = {"operationId": operation.operation_id, "summary": operation.summary}
    if operation.detail:
        made["description"] = operation.detail
    if operation.tag:
        made["tags"] = [operation.tag]
    parameters = [
        {"name": name, "in": "path", "required": True, "description": PATH_PARAMS[name], "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    parameters += [_parameter(param, "query") for param in operation.query]
    parameters += [_parameter(param, "header") for param in operation.headers]
    if parameters:
        made["parameters"] = parameters
    if operation.request is not None:
        made["requestBody"] = {
            "required": bool(_required(operation.request)),
            "content": {"application/json": {"schema": _reference(operation.request)}},
        }
    made["security"] = [] if operation.scope == "open" else [{"key": []}, {"login": []}]
    made["x-needs"] = operation.scope
    made["responses"] = {str(status): _answer(answer) for status, answer in operation.answers.items()}
    made["responses"]["default"] = {
        "description": "A problem: whose fault it is and what to do about it.",
        "content": {PROBLEM: {"schema": _reference(api.Problem)}},
    }
    return made


def _parameter(param: Param, place: str) -> Json:
    return {
        "name": param.name,
        "in": place,
        "description": param.description,
        "schema": msgspec.json.schema(param.kind),
    }


def _answer(answer: Answer) -> Json:
    made: Json = {"description": answer.says}
    if answer.contents:
        made["content"] = {content.media_type: _content(content) for content in answer.contents}
    return made


def _content(content: Content) -> Json:
    if content.media_type == EVENT_STREAM:
        if content.kind == events.TenantEvent:
            names: dict[str, Any] = {tag_of(kind): events.TurnEvent for kind in get_args(events.JournalEvent)}
            names |= {tag_of(kind): kind for kind in (events.ResetAll, events.DrainingNotice)}
            schema: Json = {"anyOf": [_reference(kind) for kind in get_args(content.kind)]}
        else:
            names = {tag_of(kind): kind for kind in get_args(content.kind)}
            schema = {"$ref": "#/components/schemas/ReaderEvent"}
        return {"schema": schema, "x-sse-events": {name: _reference(kind) for name, kind in names.items()}}
    if content.kind is None:
        return {"schema": {"type": "string"}} if content.media_type.startswith("text/") else {}
    return {"schema": _reference(content.kind)}


def _reference(kind: Any) -> Json:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {"$ref": f"#/components/schemas/{kind.__name__}"}
    return msgspec.json.schema(kind)


def _required(kind: type[msgspec.Struct]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(kind) if field.required]


def _components(named: dict[str, Any], template: str, *, readers: bool = False) -> Json:
    """The schemas of all structs that `named` reaches, and each union of it under its name.

    `readers`: an event may have members that this version does not know, for a reader outlives a server.
    """
    roots, components = msgspec.json.schema_components(named.values(), ref_template=template)
    made: Json = dict(components)
    structs = {**vars(events), **vars(api)}
    for name, component in made.items():
        for member, text in member_docs(structs[name]).items():
            if (schema := component.get("properties", {}).get(member)) is not None:
                schema.setdefault("description", text)
        if readers and "event" in component.get("properties", {}):
            component.pop("additionalProperties", None)
    for name, root in zip(named, roots, strict=True):
        if name not in made:
            made[name] = root
    return made


def tag_of(kind: type[msgspec.Struct]) -> str:
    """The name on the wire of an event or a command."""
    return str(kind.__struct_config__.tag)


def member_docs(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Member → the sentence below it in the source, inherited ones too."""
    return {
        member: text
        for base in reversed(kind.__mro__)
        for member, text in _docs_in(base.__module__).get(base.__name__, {}).items()
    }


@functools.cache
def _docs_in(module_name: str) -> dict[str, dict[str, str]]:
    """Struct → member → sentence, of one module of this package."""
    if not module_name.startswith("hermetic."):
        return {}
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module_name]))
    except OSError:
        return {}
    found: dict[str, dict[str, str]] = {}
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef):
            members = found.setdefault(statement.name, {})
            for member, below in zip(statement.body, statement.body[1:], strict=False):
                match member, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        members[name] = inspect.cleandoc(text)
    return found
