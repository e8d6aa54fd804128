"""What a turn looks like in a terminal: events in, text out."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.protocol import events as e
from hermetic.terminal import Cleaner, Renderer, clean_line, spinner_line, use_colour, visible

SEAL = e.Seal(level=0)
TURN = [
    e.Queued(turn_id="t", position=2),
    e.Started(turn_id="t", session_id="s", epoch=1, agent="demo", profile="default", workspace="/w", pid=9, seal=SEAL),
    e.Reasoning(text="Someone asks.\nLet me "),
    e.Reasoning(text="look."),
    e.Token(text="I will "),
    e.Token(text="look."),
    e.Tool(name="shell", preview="ls -la\n| wc", tid="1"),
    e.ToolComplete(name="shell", tid="1", snippet="3"),
    e.Tool(name="read", args={"path": "a.txt"}, tid="2"),
    e.ToolComplete(name="read", tid="2", snippet="no such file", is_error=True),
    e.Token(text="There are\n3 files.\n"),
    e.Approval(approval_id="a", command="rm -rf build\nls", description="Clean up?"),
    e.ApprovalResolved(approval_id="a", choice="deny", by="timeout"),
    e.Clarify(clarify_id="c", question="Tea or coffee?", choices=["tea", "coffee"]),
    e.ClarifyResolved(clarify_id="c", text="tea", by="user"),
    e.Warning(message="The disk is nearly full.", hint="Free some."),
    e.Token(text="Bye"),
    e.Done(turn_id="t", session={"messages": [{"role": "assistant", "content": "ignored"}]}, usage=e.Usage()),
    e.StreamEnd(turn_id="t", state="done"),
]
PLAIN = """\
· Someone asks.
· Let me look.
I will look.
▸ shell  ls -la | wc
▸ read  path=a.txt
  ✗ read  no such file
There are
3 files.
? The agent asks before it acts: Clean up?
    rm -rf build
    ls
  nobody answered in time: denied
? The agent asks: Tea or coffee?
    1. tea
    2. coffee
! The disk is nearly full.  Free some.
Bye
"""
COLOUR = """\
<2>· Someone asks.<0>
<2>· Let me <0><2>look.<0>
I will look.
<36>▸ shell<0>  ls -la | wc
<36>▸ read<0>  path=a.txt
<31>  ✗ read<0>  no such file
There are
3 files.
<33>? The agent asks before it acts<0>: Clean up?
    rm -rf build
    ls
<2>  nobody answered in time: denied<0>
<33>? The agent asks<0>: Tea or coffee?
    1. tea
    2. coffee
<33>! The disk is nearly full.<0>  <2>Free some.<0>
Bye
"""
HOSTILE = "a\x1b]0;title\x07b\x1b[31mred\x1b[0m\x1b[2J\x9b2Jc\r\x08\x7f\x1bPq\x1b\\ \u202eevil\u2066"


def draw(events, colour=False, only=None) -> str:
    renderer = Renderer(colour=colour)
    pieces = [piece for event in events for piece in renderer.render(event)]
    return "".join(text for to, text in pieces if only in (None, to))


def test_a_turn_without_colour_looks_like_this():
    assert draw(TURN) == PLAIN


def test_a_turn_with_colour_looks_the_same_but_for_the_colour():
    assert draw(TURN, colour=True) == COLOUR.replace("<", "\x1b[").replace("0>", "0m").replace(">", "m")


def test_stdout_alone_has_the_answer_and_nothing_else():
    assert draw(TURN, colour=True, only="out") == "I will look.\nThere are\n3 files.\nBye\n"


def test_every_event_that_a_reader_can_meet_can_be_drawn():
    drawn = {type(event) for event in TURN}
    snapshot = e.Snapshot(turn_id="t", state="running", seq=3, text="abc")
    rest = [
        e.InterimAssistant(text="x"), e.Metering(usage=e.Usage()), e.Title(title="t"), e.Compressing(message="m"),
        e.Compressed(message="m"), e.PendingSteerLeftover(text="t"), e.Steer(text="s"),
        e.Cancelling(message="m", grace_s=1), e.Cancel(turn_id="t", message="m"), e.Reset(reason="r", snapshot=snapshot),
        e.DrainingNotice(retry_ms=1), e.Apperror(turn_id="t", message="m", type="error", state="failed", fault="agent"),
        e.EgressDenied(method="CONNECT", host="evil.example\x1b[2J", port=443, reason="host_not_listed"),
    ]  # fmt: skip
    assert drawn | {type(event) for event in rest} == set(e.ReaderEvent.__args__)
    for event in rest:
        Renderer().render(event)


def test_a_denied_place_is_one_clean_line():
    denied = e.EgressDenied(method="CONNECT", host="evil.example\x1b[2J", port=443, reason="host_not_listed")
    assert draw([denied]) == "! The way to evil.example:443 is closed: host not listed\n"


def test_an_error_shows_what_the_child_printed_and_what_to_do():
    error = e.Apperror(
        turn_id="t", message="The agent's process ended.", type="crashed", state="crashed", fault="agent",
        hint="Look at its code.", stderr=["Traceback\x1b[2J", "  KeyError: 'x'"],
    )  # fmt: skip
    assert draw([e.Token(text="half an ans"), error]) == (
        "half an ans\n✗ The agent's process ended.\n  │ Traceback\n  │   KeyError: 'x'\n  Look at its code.\n"
    )


def test_an_agent_that_does_not_stream_is_heard_at_the_end():
    session = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "The answer."}]}
    assert draw([e.Done(turn_id="t", session=session, usage=e.Usage())]) == "The answer.\n"
    assert draw([e.Done(turn_id="t", session={}, usage=e.Usage())]) == ""


def test_after_a_reset_only_what_is_new_is_said():
    def reset(text):
        return e.Reset(reason="r", snapshot=e.Snapshot(turn_id="t", state="running", seq=3, text=text))

    assert draw([e.Token(text="one "), reset("one two "), e.Token(text="three")]) == "one two three"
    assert draw([e.Token(text="one"), reset("another")]) == (
        "one\nthe stream begins again; the answer so far:\nanother"
    )


# --- what must not reach a terminal -------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize(
    "event",
    [
        e.Token(text=HOSTILE),
        e.Reasoning(text=HOSTILE),
        e.InterimAssistant(text=HOSTILE, already_streamed=False),
        e.Tool(name=HOSTILE, preview=HOSTILE),
        e.Tool(name="x", args={HOSTILE: HOSTILE}),
        e.ToolComplete(name=HOSTILE, snippet=HOSTILE, is_error=True),
        e.Approval(approval_id="a", command=HOSTILE, description=HOSTILE),
        e.Clarify(clarify_id="c", question=HOSTILE, choices=[HOSTILE]),
        e.Warning(message=HOSTILE, hint=HOSTILE),
        e.Compressed(message=HOSTILE),
        e.Steer(text=HOSTILE),
        e.PendingSteerLeftover(text=HOSTILE),
        e.Apperror(
            turn_id="t", message=HOSTILE, type="error", state="failed", fault="agent", hint=HOSTILE, stderr=[HOSTILE]
        ),
        e.Done(turn_id="t", session={"messages": [{"role": "assistant", "content": HOSTILE}]}, usage=e.Usage()),
        e.Reset(reason="r", snapshot=e.Snapshot(turn_id="t", state="running", seq=1, text=HOSTILE)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, e.Event) else str(value),
)
def test_no_event_carries_an_escape_sequence_into_the_terminal(event, colour):
    drawn = draw([event], colour)
    for own in ("2", "31", "33", "36", "0"):
        drawn = drawn.replace(f"\x1b[{own}m", "") if colour else drawn
    assert all(character.isprintable() or character in "\n\t" for character in drawn), ascii(drawn)


def test_colours_of_tools_vanish_whole_and_other_sequences_stay_as_litter():
    assert draw([e.Token(text="\x1b[1;31mred\x1b[0m \x1b]52;c;ZXZpbA==\x07")]) == "red ]52;c;ZXZpbA=="


def test_a_sequence_cut_between_two_tokens_is_caught_as_well():
    assert draw([e.Token(text="a\x1b"), e.Token(text="[3"), e.Token(text="1mb"), e.Token(text="\x1b")]) == "ab"


def test_a_held_back_beginning_is_given_out_when_it_does_not_become_a_sequence():
    assert draw([e.Token(text="a\x1b[12"), e.Tool(name="x")]) == "a[12\n▸ x\n"


@given(st.lists(st.text(alphabet="ab\x1b[]0;m\n\r\x9b\u202e")))
def test_any_split_of_any_text_is_cleaned_to_the_same(parts):
    cleaner, whole = Cleaner(), Cleaner()
    cleaned = "".join(cleaner.feed(part) for part in parts) + cleaner.end()
    assert cleaned == whole.feed("".join(parts)) + whole.end()
    assert not set(cleaned) & set("\x1b\r\x9b\u202e")


def test_what_is_to_be_allowed_hides_nothing():
    assert visible("ls\x1b[8m; rm -rf ~\x1b[0m \u202e\r") == r"ls\x1b[8m; rm -rf ~\x1b[0m \u202e\r"
    drawn = draw(
        [e.Approval(approval_id="a", command="ls\n? The agent asks before it acts: nothing", description="a\nb")]
    )
    assert drawn.splitlines()[1:] == ["    b", "    ls", "    ? The agent asks before it acts: nothing"]


def test_a_line_is_cut_and_joined():
    assert clean_line("  a\n\tb \x1b[1mc ") == "a b c"
    assert clean_line("abcdef", 4) == "abc…"


# --- prompts, spinner, colour -------------------------------------------------------------------------------------


def test_what_comes_while_a_question_waits_begins_on_its_own_line():
    renderer = Renderer()
    assert "".join(text for _, text in renderer.prompt("yes? ") + renderer.render(e.Token(text="x"))) == "yes? \nx"
    renderer = Renderer()
    renderer.prompt("yes? ")
    renderer.prompt_answered()
    assert "".join(text for _, text in renderer.render(e.Token(text="x"))) == "x"


def test_the_spinner_says_what_the_turn_does_and_stays_on_one_line():
    renderer = Renderer()
    assert renderer.status == "starting"
    renderer.render(e.Queued(turn_id="t", position=3))
    assert renderer.status == "queued, number 3"
    renderer.render(e.Tool(name="she\nll\x1b[2J"))
    assert spinner_line(0, renderer.status, renderer.style) == "\r⠋ she ll\x1b[K"


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_colour_is_only_for_terminals_that_can_and_people_who_want_it():
    assert use_colour(Screen(), {"TERM": "xterm"})
    assert not use_colour(io.StringIO(), {"TERM": "xterm"})
    assert not use_colour(Screen(), {"TERM": "xterm", "NO_COLOR": "1"})
    assert not use_colour(Screen(), {"TERM": "dumb"})
    assert use_colour(Screen(), {"TERM": "xterm", "NO_COLOR": ""})
