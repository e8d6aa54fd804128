"""Secrets do not get through: in any split, in every form that is looked for, and nothing else is touched."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.protocol import events
from hermetic.supervisor.egress.model_rules import PLACEHOLDER
from hermetic.supervisor.redact import MARK, Redactor, Scrubber, pieces_of, repeats_itself, secret_values

KEY = "sk-live-4eC39HqLyjWDarjtT1zdp7dc"
AWKWARD = 'pa"ss\\wörd\t/+?&'
PEM = "-----BEGIN KEY-----\n" + "\n".join(
    f"{n:02d}MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ" for n in range(20)
)


def clean(text: str, *values: str) -> str:
    return Redactor(values or (KEY,)).text(text)


def in_parts(text: str, sizes: list[int], pieces: list[str]) -> str:
    scrubber, said, at = Scrubber(pieces), "", 0
    for size in [*sizes, len(text)]:
        said += scrubber.feed(text[at : at + size])
        at += size
    return said + scrubber.close()


@pytest.mark.parametrize("value", [KEY, AWKWARD, PEM, "".join(map(str, range(1500)))])
def test_every_form_of_a_value_is_marked_and_what_is_around_it_stays(value):
    data = value.encode()
    for form in (
        value,
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        data.hex(),
        data.hex().upper(),
        quote(value, safe=""),
    ):
        assert clean(f"before {form} after", value) == f"before {MARK} after", form[:40]


@pytest.mark.parametrize("value", [KEY, AWKWARD])
@pytest.mark.parametrize("before", ["", "a", "ab", "abc", "user:"])
@pytest.mark.parametrize("after", ["", "x", "yz", "\n"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_of_something_around_a_value_shows_nothing_of_it(value, before, after, encode):
    encoded = encode((before + value + after).encode()).decode()
    said = clean(f"Authorization: Basic {encoded}.", value)
    assert MARK in said
    rest = said.removeprefix("Authorization: Basic ").replace(MARK, "")
    assert len(rest) <= len(encode((before + after).encode())) + 8, "a digit on each side may hold a bit of the value"


def test_text_without_a_secret_stays_as_it_is_and_comes_at_once():
    scrubber = Scrubber(pieces_of([KEY]))
    for part in ("The ", "quick ", "brown fox.", "\n", ""):
        assert scrubber.feed(part) == part
    assert scrubber.close() == ""


def test_only_what_may_begin_a_secret_waits_and_no_longer_than_the_next_part():
    scrubber = Scrubber(pieces_of([KEY]))
    assert scrubber.feed("It is s") == "It is "
    assert scrubber.feed("o.") == "so."
    assert scrubber.feed("ask") == "a"
    assert scrubber.feed("-") == ""
    assert scrubber.feed("ing") == "sk-ing"
    assert scrubber.feed(KEY[:10]) == ""
    assert scrubber.feed(KEY[10:] + ".") == f"{MARK}."


def test_a_beginning_at_the_end_of_everything_is_marked_when_it_is_half_and_said_when_it_is_less():
    assert clean(f"see {KEY[:20]}") == f"see {MARK}"
    assert clean(f"see {KEY[:20]}...") == f"see {MARK}..."
    assert clean(f"see {KEY[:7]}") == f"see {KEY[:7]}"


def test_a_part_of_a_long_secret_is_marked_too():
    value = "".join(chr(33 + (n * n * 7 + n) % 90) for n in range(1000))
    said = clean(f"preview: {value[:200]}", value)
    assert said.startswith(f"preview: {MARK}")
    assert len(said) < 100
    indented = "".join(f"  {line}\n" for line in PEM.split("\n")[1:])
    assert clean(indented, PEM) == f"  {MARK}\n" * 20


alphabet = st.sampled_from('ab"\\é')
secrets_of_few_letters = st.lists(st.text(alphabet, min_size=8, max_size=12), min_size=1, max_size=3)


@given(secrets_of_few_letters, st.data())
def test_the_split_of_a_stream_decides_nothing(values, data):
    pieces = pieces_of(values)
    words = st.one_of(
        alphabet, st.sampled_from(values), st.sampled_from(values).map(lambda value: value[: len(value) // 2])
    )
    text = "".join(data.draw(st.lists(words, max_size=20)))
    sizes = data.draw(st.lists(st.integers(0, 9), max_size=40))
    said = in_parts(text, sizes, pieces)
    assert said == in_parts(text, [], pieces) == in_parts(text, [1] * len(text), pieces)
    assert not any(piece in said.replace(MARK, "\0") for piece in pieces)


@given(secrets_of_few_letters, st.lists(st.text(st.sampled_from("xyz 1"), min_size=1), max_size=20))
def test_text_that_shares_no_letter_with_a_secret_is_never_held(values, parts):
    pieces = [value for value in values if value]  # as they are: encoded forms do share letters with it
    scrubber = Scrubber(pieces)
    assert [scrubber.feed(part) for part in parts] == parts


def test_what_is_held_is_bounded():
    scrubber, said = Scrubber(pieces_of(["a" * 9 + "b" * 3000])), 0
    for n in range(3000):
        said += len(scrubber.feed("a"))
        assert n + 1 - said <= 9


def test_a_long_value_that_repeats_itself_is_known_as_such():
    for value in ("c" * 16000, "abcd" * 40, KEY + "-" * 1000):
        assert repeats_itself(value)
    for value in (KEY, PEM, AWKWARD, "password password", "x" * 9, json.dumps({str(n): n * n for n in range(999)})):
        assert not repeats_itself(value)


def test_few_and_many_pieces_are_found_alike():
    many = [f"{n * n:08d}{n}" for n in range(300)]
    text = "".join(f" {value}" for value in many[:20])
    assert Redactor(many).text(text * 20) == f" {MARK}" * 400
    assert Redactor(many[:20]).text(text * 20) == f" {MARK}" * 400


# --- a turn -----------------------------------------------------------------------------------------------------------


def frames(*said: events.Event) -> list[tuple[bytes, events.Event]]:
    return [(events.encode(event), event) for event in said]


def names(out) -> list[str]:
    return [events.event_name(event) for _, event in out]


def test_a_secret_over_several_tokens_is_marked_and_bytes_that_hide_nothing_are_kept():
    redactor = Redactor([KEY])
    spaced = (b'{"event": "token", "text": "Key: "}', events.Token(text="Key: "))
    out = redactor.frames([spaced, *frames(*(events.Token(text=letter) for letter in KEY), events.Token(text="!"))])
    assert out[0] == spaced
    assert "".join(event.text for _, event in out) == f"Key: {MARK}!"
    assert all(msgspec.json.decode(frame, type=events.ChildEvent) == event for frame, event in out)


def test_usage_between_two_tokens_does_not_let_a_secret_through():
    out = Redactor([KEY]).frames(
        frames(events.Token(text=KEY[:9]), events.Metering(usage=events.Usage()), events.Token(text=KEY[9:]))
    )
    assert names(out) == ["metering", "token"]
    assert out[1][1].text == MARK


def test_reasoning_and_answer_are_two_texts():
    out = Redactor([KEY]).frames(
        frames(
            events.Token(text=KEY[:9]), events.Reasoning(text=KEY[:9]), events.Token(text=KEY[9:]),
            events.Reasoning(text="…"),
        )
    )  # fmt: skip
    assert [(type(event), event.text) for _, event in out] == [
        (events.Token, MARK),
        (events.Reasoning, f"{KEY[:9]}…"),
    ]


def test_all_that_was_said_comes_before_a_tool_a_question_and_the_end():
    for following in (
        events.Tool(name="t"),
        events.Approval(approval_id="a", command="c"),
        events.Clarify(clarify_id="c", question="?"),
        events.InterimAssistant(text="x"),
        events.Result(),
        events.Failed(message="m"),
    ):
        out = Redactor([KEY]).frames(frames(events.Token(text="it is s"), following))
        assert names(out) == ["token", "token", events.event_name(following)]
        assert [event.text for _, event in out[:2]] == ["it is ", "s"]


def test_every_text_of_every_event_is_cleaned():
    said = frames(
        events.Tool(name="sh", preview=f"echo {KEY}", args={"cmd": KEY, f"{KEY}": "1"}, tid="1"),
        events.ToolComplete(name="sh", snippet=f"{KEY[:20]}..."),
        events.Approval(approval_id="a", command=KEY, choices=["once"]),
        events.Title(title=KEY),
        events.Warning(message=KEY),
        events.Failed(message=KEY),
        events.Result(text=KEY, messages=[{"role": "assistant", "content": [{"text": KEY}], "n": 1}], title=None),
    )
    for (before, _), (frame, event) in zip(said, Redactor([KEY]).frames(said), strict=True):
        assert MARK.encode() in frame
        assert KEY[:20].encode() not in frame
        assert msgspec.json.decode(frame, type=events.ChildEvent) == event
        assert msgspec.json.decode(frame)["event"] == msgspec.json.decode(before)["event"]


def test_an_escaped_frame_is_read_before_it_is_judged():
    text = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
    frame = f'{{"event":"title","title":"{text}"}}'.encode()
    [(said, _)] = Redactor([KEY]).frames([(frame, msgspec.json.decode(frame, type=events.ChildEvent))])
    assert said == b'{"event":"title","title":"%s"}' % MARK.encode()


def test_secrets_are_the_stored_ones_and_those_whose_names_say_so():
    environment = {"A_TOKEN": "1", "OPENAI_API_KEY": "2", "HOME": "3", "STORED": "4", "db_password": "5"}
    assert secret_values(environment, ["STORED", "not there"]) == ["1", "2", "4", "5"]
    assert secret_values({"OPENAI_API_KEY": PLACEHOLDER}) == []
    assert not Redactor([]), "nothing to look for, nothing to do"
    assert not Redactor(["short"]), "it would be found everywhere"


@given(st.lists(st.binary(max_size=4) | st.sampled_from([KEY.encode(), "é".encode()]), max_size=20), st.integers(1, 5))
def test_prints_that_are_not_utf_8_come_through_byte_by_byte_without_the_secret(parts, size):
    data = b"".join(parts)
    scrubber = Redactor([KEY]).scrubber()
    said = b"".join(scrubber.feed(data[at : at + size]) for at in range(0, len(data), size)) + scrubber.close()
    expected = data.replace(KEY.encode(), MARK.encode())
    while (MARK * 2).encode() in expected:
        expected = expected.replace((MARK * 2).encode(), MARK.encode())
    assert said == expected
