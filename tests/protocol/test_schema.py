"""The schemas say what the structs do, and validators that we did not write agree."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from protocol_values import ALL_EVENTS, CHILD_EVENTS, READER_EVENTS, values_of

import hermetic
from hermetic.protocol import api, events, reference, schema
from hermetic.protocol.operations import EVENT_STREAM, OPERATIONS, Answer, Operation

DOCUMENT = schema.openapi()
EVENTS = schema.json_schema()
CHECK = Draft202012Validator(EVENTS)


def test_the_event_schema_is_a_json_schema_2020_12() -> None:
    Draft202012Validator.check_schema(EVENTS)
    assert EVENTS["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@given(st.one_of([values_of(kind) for kind in ALL_EVENTS]))
@settings(max_examples=50)
def test_every_event_fits_the_schema(event: events.Event) -> None:
    CHECK.validate(json.loads(events.encode(event)))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"event": "nonsense"},
        {"event": "token"},
        {"event": "token", "text": 1},
        {"event": "token", "text": "x", "more": 1},
        {"event": "metering", "usage": {"input_tokens": -1}},
        {"event": "stream_end", "turn_id": "t", "state": "running"},
    ],
    ids=json.dumps,
)
def test_what_the_decoder_refuses_the_schema_refuses(wrong: dict[str, Any]) -> None:
    assert not CHECK.is_valid(wrong)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, events.ReaderEvent)


def test_openapi_is_valid_by_the_specifications_own_schema() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert DOCUMENT["openapi"].startswith("3.1")
    assert DOCUMENT["info"]["version"] == hermetic.__version__


def test_a_document_that_points_nowhere_is_found() -> None:
    """So the test above can fail."""
    broken = json.loads(json.dumps(DOCUMENT))
    del broken["paths"]["/v1/turns/{turn_id}"]["get"]["parameters"]
    assert not OpenAPIV31SpecValidator(broken).is_valid()


def test_every_reference_leads_to_a_schema() -> None:
    found = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert found <= DOCUMENT["components"]["schemas"].keys()
    assert set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(EVENTS))) <= EVENTS["$defs"].keys()


def test_operations_are_named_once_and_declare_each_path_parameter() -> None:
    names = [operation.operation_id for operation in OPERATIONS]
    assert len(names) == len(set(names))
    places = [(operation.method, operation.path) for operation in OPERATIONS]
    assert len(places) == len(set(places))
    for operation in OPERATIONS:
        made = DOCUMENT["paths"][operation.path][operation.method]
        in_path = [p["name"] for p in made.get("parameters", []) if p["in"] == "path"]
        assert in_path == re.findall(r"{(\w+)}", operation.path)


def test_every_operation_may_answer_with_a_problem() -> None:
    for methods in DOCUMENT["paths"].values():
        for made in methods.values():
            content = made["responses"]["default"]["content"]
            assert content == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def test_the_event_stream_is_typed_event_by_event() -> None:
    made = DOCUMENT["paths"]["/v1/turns/{turn_id}/events"]["get"]["responses"]["200"]["content"][EVENT_STREAM]
    assert made["x-sse-events"].keys() == {schema.tag_of(kind) for kind in READER_EVENTS}
    union = DOCUMENT["components"]["schemas"]["ReaderEvent"]
    assert union["discriminator"]["propertyName"] == "event"
    assert union["discriminator"]["mapping"].keys() == made["x-sse-events"].keys()


def test_requests_are_strict_and_answers_may_grow() -> None:
    components = DOCUMENT["components"]["schemas"]
    for operation in OPERATIONS:
        if operation.request is not None:  # what a web UI's runner is asked may have members that we do not know
            strict = components[operation.request.__name__].get("additionalProperties") is False
            assert strict == (operation.tag != "runs")
    for kind in READER_EVENTS:
        assert "additionalProperties" not in components[kind.__name__]
        assert EVENTS["$defs"][kind.__name__]["additionalProperties"] is False


def test_every_request_struct_of_the_api_is_in_use() -> None:
    requests = {kind for kind in vars(api).values() if isinstance(kind, type) and issubclass(kind, api.Request)}
    assert requests - {api.Request} == {operation.request for operation in OPERATIONS} - {None}


def test_members_carry_the_sentences_of_the_sources() -> None:
    components = DOCUMENT["components"]["schemas"]
    assert components["TurnView"]["properties"]["last_seq"]["description"] == "The newest event in the journal."
    assert components["Started"]["description"] == "The child is ready and has been given the turn."
    # Inherited ones too.
    assert "has not ended" in components["SessionView"]["properties"]["active_turn_id"]["description"]


def test_a_path_parameter_without_a_description_is_an_error() -> None:
    odd = Operation(method="get", path="/{odd}", operation_id="odd", summary="", answers={200: Answer(says="")})
    with pytest.raises(KeyError, match="odd"):
        schema.openapi([odd])


def test_the_tags_are_the_names_that_existing_clients_know() -> None:
    known = {"token", "tool", "approval", "compressed", "done", "apperror", "cancel"}
    successors = {
        *("reasoning", "tool_complete", "interim_assistant", "clarify", "compressing", "title", "stream_end"),
        *("metering", "pending_steer_leftover", "warning"),
    }
    tags = {schema.tag_of(kind) for kind in READER_EVENTS}
    assert known | successors <= tags
    ours = {"queued", "started", "approval_resolved", "clarify_resolved", "steer", "cancelling", "reset", "draining"}
    ours |= {"egress_denied"}
    assert tags - known - successors == ours


FIELDS_OF_EXISTING_CLIENTS = {
    events.Token: {"text"},
    events.Tool: {"name", "preview", "args"},
    events.Approval: {"command", "pattern_key", "pattern_keys", "description", "approval_id", "choices", "expires_at"},
    events.Compressed: {"message"},
    events.Done: {"session", "usage"},
    events.Apperror: {"message", "type", "hint"},
    events.Cancel: {"message"},
    events.Usage: {
        *("input_tokens", "output_tokens", "estimated_cost"),
        *("context_length", "threshold_tokens", "last_prompt_tokens"),
    },
    api.CompactSession: {
        *("session_id", "title", "workspace", "model", "message_count", "created_at", "updated_at", "pinned"),
        *("archived", "project_id", "profile", "input_tokens", "output_tokens", "estimated_cost", "personality"),
    },
    api.ToolCard: {"name", "snippet", "tid", "assistant_msg_idx", "args"},
}


@pytest.mark.parametrize("kind", FIELDS_OF_EXISTING_CLIENTS, ids=lambda kind: kind.__name__)
def test_structs_have_the_members_that_existing_clients_know(kind: type[msgspec.Struct]) -> None:
    assert FIELDS_OF_EXISTING_CLIENTS[kind] <= {field.encode_name for field in msgspec.structs.fields(kind)}


def test_every_event_of_the_union_says_what_it_means() -> None:
    for kind in ALL_EVENTS:
        assert kind.__doc__, kind


PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"


def test_the_documented_tables_are_those_of_the_structs() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert reference.fill(page) == page, "run `make docs`"


def test_every_table_that_can_be_made_is_on_the_page() -> None:
    assert set(re.findall(r"<!-- table: (\w+) -->", PAGE.read_text(encoding="utf-8"))) == reference.tables().keys()


def test_a_mark_that_names_no_table_is_an_error() -> None:
    with pytest.raises(KeyError, match="unheard"):
        reference.fill("<!-- table: unheard -->\n<!-- end of table -->")


def test_unions_hold_what_their_names_say() -> None:
    assert set(get_args(events.JournalEvent)) == set(READER_EVENTS) - set(get_args(events.StreamEvent))
    assert not set(get_args(events.SupervisorEvent)) & set(CHILD_EVENTS)
