"""The event stream belongs to the protocol, whatever the agent prints."""

from __future__ import annotations

import json

import msgspec
import pytest
from child_driver import Child, Run

from hermetic.protocol import PROTOCOL_VERSION, commands
from hermetic.protocol.commands import Start
from hermetic.protocol.events import (
    Failed,
    InterimAssistant,
    Ready,
    Reasoning,
    Result,
    Token,
    Tool,
    ToolComplete,
    Warning,
)


@pytest.mark.parametrize(
    "prints",
    [
        "print('STRAY')",
        "import os; os.write(1, b'STRAY')",
        "import sys; sys.__stdout__.write('STRAY')",
        "import subprocess; subprocess.run(['echo', 'STRAY'], check=True)",
        "import os; os.system('echo STRAY')",
        "import ctypes; libc = ctypes.CDLL(None); libc.puts(b'STRAY'); libc.fflush(None)",
        'print(\'{"event":"result"} STRAY\')',
        "import sys; sys.stdout.write('STRAY no newline')",
        "print('STRAY \\udc80')",
    ],
)
def test_what_an_agent_prints_goes_to_stderr_and_never_into_the_event_stream(run: Run, prints: str) -> None:
    child = run(f"{prints}\ndef agent():\n    {prints}\n    return 'said'")
    assert child.finish() == Result()
    assert child.stderr.count("STRAY") == 2
    assert child.text == "said"


def test_the_agent_has_three_standard_descriptors_and_its_two_streams_and_no_others(run: Run) -> None:
    child = run("""
        import os
        def agent(turn):
            here = os.open("/proc/self/fd", os.O_DIRECTORY)
            links = {}
            for fd in os.listdir(here):
                if int(fd) != here:
                    try:
                        links[fd] = os.readlink(fd, dir_fd=here)
                    except FileNotFoundError:
                        pass
            import json
            turn.token(json.dumps(links))
    """)
    child.finish()
    links = json.loads(child.text)
    assert len(links) == 5
    assert links["0"] == "/dev/null"
    assert links["1"] == links["2"]
    assert all(link.startswith("pipe:") for fd, link in links.items() if fd != "0")


def test_a_subprocess_of_the_agent_has_neither_of_the_two_streams(run: Run) -> None:
    child = run("""
        import subprocess
        def agent(turn):
            return subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True, close_fds=False).stdout
    """)
    child.finish()
    assert all(int(fd) < 50 for fd in child.text.split())


def test_stdin_is_at_its_end_for_the_agent(run: Run) -> None:
    child = run("import sys\ndef agent():\n    return repr(sys.stdin.read())")
    child.finish()
    assert child.text == "''"


def test_ready_comes_first_and_names_the_protocol(run: Run) -> None:
    child = run("def agent(): return 'x'")
    child.finish()
    ready = child.events[0]
    assert isinstance(ready, Ready)
    assert ready.protocol == PROTOCOL_VERSION
    assert ready.pid == 2  # in its own PID namespace, after init


def test_the_environment_is_exactly_the_one_that_was_given(run: Run) -> None:
    child = run("import json, os\ndef agent(): return json.dumps(dict(os.environ))", env={"KEY": "value"})
    child.finish()
    seen = json.loads(child.text)
    assert seen.pop("KEY") == "value"
    assert set(seen) <= {"PATH", "LC_CTYPE"}  # LC_CTYPE: PEP 538 sets it in a C locale


def test_a_token_over_the_frame_limit_arrives_as_several_that_join_to_the_same_text(run: Run) -> None:
    child = run(
        """
        def agent(turn):
            turn.reasoning("r" * 10000)
            turn.token("ä€😀\\n\\x00" * 3000)
        """,
        frame_bytes_max=4096,
    )
    child.finish()
    assert child.text == "ä€😀\n\x00" * 3000
    assert "".join(e.text for e in child.events if isinstance(e, Reasoning)) == "r" * 10000
    assert max(map(len, child.frames)) < 4096


def test_an_event_of_another_kind_over_the_limit_is_cut_and_a_warning_says_so(run: Run) -> None:
    child = run(
        """
        def agent(turn):
            with turn.tool("name", preview="p" * 100000) as call:
                call.complete("x" * 100000)
        """,
        frame_bytes_max=2048,
    )
    assert isinstance(child.finish(), Result)
    warning, tool, complete = child.events[1:4]
    assert isinstance(warning, Warning) and warning.code == "event_cut"
    assert isinstance(tool, Tool) and tool.name == "name" and "characters cut]" in tool.preview
    assert isinstance(complete, ToolComplete) and complete.snippet == "x" * 200
    assert max(map(len, child.frames)) < 2048


def test_lone_surrogates_are_replaced_and_harm_nothing(run: Run) -> None:
    child = run("def agent(turn):\n    turn.token('a\\udc80b')\n    return 'c'")
    assert child.finish() == Result()
    assert child.text == "a?bc"


def test_threads_that_stream_at_once_never_mix_their_frames(run: Run) -> None:
    child = run("""
        import threading
        def agent(turn):
            def say(letter):
                for _ in range(200):
                    turn.token(letter * 700)
            threads = [threading.Thread(target=say, args=(letter,)) for letter in "abcd"]
            [t.start() for t in threads]
            [t.join() for t in threads]
    """)
    child.finish()
    tokens = [e.text for e in child.events if isinstance(e, Token)]
    assert sorted(tokens) == sorted(letter * 700 for letter in "abcd" for _ in range(200))


def test_nothing_follows_the_result_even_from_a_thread_that_goes_on(run: Run) -> None:
    child = run("""
        import threading
        def agent(turn):
            def go_on():
                while True:
                    turn.token("more ")
            threading.Thread(target=go_on, daemon=True).start()
            return "end"
    """)
    assert child.finish() == Result()


def test_a_forked_copy_of_the_agent_cannot_speak_or_end_the_turn(run: Run) -> None:
    child = run("""
        import os
        def agent(turn):
            pid = os.fork()
            if pid == 0:
                turn.token("from the copy")
                return "the copy's answer"
            os.waitpid(pid, 0)
            return "mine"
    """)
    assert child.finish() == Result()
    assert child.text == "mine"
    assert "forked process" in child.stderr


def test_a_large_history_arrives_whole(run: Run) -> None:
    history = [{"role": "user", "content": "x" * 1000}] * 3000
    child = run("def agent(history): return str(sum(len(m['content']) for m in history))", history=history)
    child.finish()
    assert child.text == "3000000"


def test_the_end_of_the_command_stream_before_start_ends_the_child_quietly() -> None:
    with Child() as child:
        child.wait_event(Ready)
        child.stdin.close()
        assert child.wait_exited().exit_code == 0
        assert len(child.events) == 1 and child.stderr == ""


@pytest.mark.parametrize("garbage", [b"nonsense\n", b"\xff\n", b'{"command":"fly"}\n', b"{}\n", b'{"com'])
def test_garbage_in_place_of_start_fails_with_hermetic_at_fault(garbage: bytes) -> None:
    with Child() as child:
        child.wait_event(Ready)
        child.stdin.write(garbage)
        child.stdin.close()
        end = child.finish()
        assert isinstance(end, Failed) and end.fault == "hermetic" and end.type == "protocol"


def test_garbage_after_start_does_not_end_the_turn(run: Run) -> None:
    child = run("""
        import time
        def agent(turn):
            while not turn.cancelled:
                turn.token(".")
                time.sleep(0.01)
            return "bye"
    """)
    child.wait_text(".")
    child.stdin.write(b"nonsense\n")
    child.wait_until(lambda _: "no more commands" in child.stderr)
    child.terminate()
    assert child.finish() == Result(interrupted=True)
    assert child.text.endswith("bye")


def test_another_version_of_the_protocol_is_refused_with_both_versions_named(run: Run) -> None:
    end = run("def agent(): return 'x'", protocol=99).finish()
    assert isinstance(end, Failed) and end.fault == "host"
    assert "99" in end.message and str(PROTOCOL_VERSION) in end.message


def test_start_split_into_single_bytes_is_understood() -> None:
    with Child() as child:
        child.wait_event(Ready)
        start = Start(protocol=1, turn_id="t", session_id="s", message="ask", workspace="/tmp", adapter="nope")
        for byte in commands.encode(start) + b"\n":
            child.stdin.write(bytes([byte]))
        end = child.finish()
        assert isinstance(end, Failed) and end.fault == "host"
        assert "nope" in end.message and '"demo"' in end.hint and '"function"' in end.hint


def test_every_frame_is_what_the_encoder_would_write() -> None:
    """The supervisor forwards a frame's own bytes, so they must be canonical."""
    with Child() as child:
        child.start(adapter="demo", message="count to 3")
        child.finish()
        assert child.frames == [msgspec.json.encode(event) for event in child.events]


def test_interim_assistant_messages_are_split_too() -> None:
    import os

    from hermetic.agent_child.emitter import Emitter
    from hermetic.protocol.framing import event_decoder

    read_fd, write_fd = os.pipe()
    emitter = Emitter(write_fd)
    emitter.frame_bytes_max = 256
    emitter.emit(InterimAssistant(text="x" * 1000))
    emitter.emit(Result(messages=[{"role": "user", "content": "y"}] * 200))
    os.close(write_fd)
    with open(read_fd, "rb") as file:
        heard = [event for _, event in event_decoder(256).feed(file.read())]
    assert "".join(e.text for e in heard if isinstance(e, InterimAssistant)) == "x" * 1000
    assert heard[-1] == Result()
    assert isinstance(heard[-2], Warning)
