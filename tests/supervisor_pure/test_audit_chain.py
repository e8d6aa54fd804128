"""The audit log's chain: what was written is found again whole, and every way to change it is found out."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.protocol.errors import ClientError
from hermetic.supervisor.audit import START, Act, BrokenChain, Link, following, hash_of, parse_head, verify

texts = st.text(max_size=40)
acts = st.builds(
    Act,
    action=texts,
    actor=texts,
    tenant=texts,
    target=texts,
    detail=st.dictionaries(texts, st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | texts, max_size=4),
)


def chain(done: list[Act]) -> list[Link]:
    links = [START]
    for at, act in enumerate(done):
        links.append(following(links[-1], act, at))
    return links[1:]


def some(count: int) -> list[Link]:
    return chain([Act(action="turn.start", actor="local", target=f"t{n}") for n in range(count)])


def broken(lines: list[bytes], heads: list[Link] | None = None) -> int:
    with pytest.raises(BrokenChain) as caught:
        verify(lines, heads or [])
    return int(caught.value.extra["seq"])


@given(st.lists(acts, max_size=6))
def test_what_was_written_verifies_against_every_head(done):
    links = chain(done)
    assert verify([link.line for link in links], links) == (links[-1] if links else START)
    assert all(parse_head(link.head)[::2] == (link.seq, link.hash) for link in links)


@given(st.lists(acts, min_size=2, max_size=6), st.data())
def test_any_other_byte_in_any_record_but_the_last_breaks_the_chain(done, data):
    lines = [link.line for link in chain(done)]
    at = data.draw(st.integers(0, len(lines) - 2))
    place = data.draw(st.integers(0, len(lines[at]) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != lines[at][place]))
    lines[at] = lines[at][:place] + bytes([byte]) + lines[at][place + 1 :]
    assert broken(lines) in (at + 1, at + 2)


def test_a_record_that_is_missing_in_the_middle_is_found():
    lines = [link.line for link in some(5)]
    assert broken(lines[:2] + lines[3:]) == 3
    assert broken(lines[1:]) == 1
    assert broken([lines[0], lines[2], lines[1]]) == 2
    assert broken([*lines, lines[-1]]) == 6


def test_an_end_that_was_cut_off_shows_against_a_head_and_not_without_one():
    links = some(5)
    lines = [link.line for link in links]
    assert verify(lines[:3]).seq == 3
    assert broken(lines[:3], [links[-1]]) == 4
    assert broken([], [links[0]]) == 1


def test_a_log_that_was_written_anew_from_some_place_on_shows_against_a_head():
    links = some(5)
    forged = links[:3]
    for at in (3, 4):
        forged.append(following(forged[-1], Act(action="nothing", actor="nobody"), at))
    assert verify([link.line for link in forged]).seq == 5
    assert broken([link.line for link in forged], [links[4]]) == 5
    assert verify([link.line for link in forged], [links[2]]).seq == 5, "an older head cannot know"


def test_a_record_in_another_spelling_is_none():
    line = some(1)[0].line
    for other in (
        b" " + line,
        line + b"\n",
        msgspec.json.encode(msgspec.json.decode(line), order=None)[::-1],
        b"",
        b"{}",
    ):
        assert broken([other]) == 1
    members = msgspec.json.decode(line)
    assert broken([msgspec.json.encode({**members, "more": 1}, order="sorted")]) == 1
    assert broken([msgspec.json.encode({**members, "seq": 1.0}, order="sorted")]) == 1


def test_what_is_no_head_is_refused():
    for text in ("", "1", "1:", f"1:{'g' * 64}", f"-1:{'0' * 64}", f"1:{'0' * 63}"):
        with pytest.raises(ClientError):
            parse_head(text)
    with pytest.raises(ClientError, match="two hashes"):
        verify([], [Link(1, b"", "0" * 64), Link(1, b"", "1" * 64)])


def test_long_and_broken_text_from_outside_is_cut_and_made_whole():
    link = following(START, Act(action="login.refused", actor="unknown", target="\ud800" + "x" * 5000), 1)
    assert len(link.line) < 2000
    assert verify([link.line]) == link
    assert link.hash == hash_of(link.line)
