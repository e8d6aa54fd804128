"""The command line, as a person types it: on a pseudo-terminal and through pipes, with real servers and children."""

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from hermetic.client import Client

WAIT_S = 60
"""A bound for a test that hangs, not a measurement."""
AGENTS = '''
import signal, sys, time

def loud(turn):
    """An agent that tries to take the terminal over."""
    turn.reasoning("\\x1b[2Jhm\\x1b]0;owned\\x07")
    yield "red \\x1b[31m"
    yield "text\\x1b]52;c;ZXZpbA==\\x07 end"

def fails(turn):
    yield "half an ans"
    print("on stdout")
    raise RuntimeError("the model is away")

def stubborn(turn):
    """Ends for nobody."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield "I stay."
    while True:
        time.sleep(0.1)

def long(turn):
    for number in range(100000):
        yield f"{number} "
        time.sleep(0.001)

def echo(turn):
    yield f"<{turn.message}>"
'''
CONFIG = """
default_agent = "demo"
[turns]
grace_s = 1.0
"""
AS_A_TERMINAL = "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


@pytest.fixture
def house(tmp_path):
    """A configuration with the agents above and a data directory of its own."""
    (tmp_path / "my_agents.py").write_text(AGENTS)
    text = CONFIG + "".join(
        f'[agents.{name}]\nadapter = "function"\ntarget = "my_agents:{name}"\npython_path = ["{tmp_path}"]\n'
        for name in re.findall(r"^def (\w+)", AGENTS, re.MULTILINE)
    )
    (tmp_path / "hermetic.toml").write_text(text)
    (tmp_path / "work").mkdir()
    return tmp_path


def where(house: Path) -> list[str]:
    return ["--config", str(house / "hermetic.toml"), "--data", str(house / "data")]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    return {**kept, "TERM": "xterm", "PYTHONWARNINGS": "default", **more}


async def run(*arguments: object, stdin: bytes = b"", **options) -> subprocess.CompletedProcess:
    """The command with pipes."""
    command = [sys.executable, "-m", "hermetic", *map(str, arguments)]
    with trio.fail_after(WAIT_S):
        return await trio.run_process(
            command, stdin=stdin, capture_stdout=True, capture_stderr=True, check=False, env=environment(), **options
        )


class Terminal:
    """A program on a pseudo-terminal: what it has shown, and a keyboard."""

    def __init__(self, fd: int, process: trio.Process):
        self.fd, self.process = fd, process
        self.shown = ""
        self._seen = 0

    async def expect(self, text: str) -> str:
        """Waits until `text` has been shown after what was expected before; gives everything in between."""
        with trio.fail_after(WAIT_S):
            while text not in self.shown[self._seen :]:
                if not await self._read():
                    raise AssertionError(f"{text!r} never came: {self.shown!r}")
        start, self._seen = self._seen, self.shown.index(text, self._seen) + len(text)
        return self.shown[start : self._seen]

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    async def exit_code(self) -> int:
        with trio.fail_after(WAIT_S):
            while await self._read():
                pass
            return await self.process.wait()

    async def _read(self) -> bool:
        await trio.lowlevel.wait_readable(self.fd)
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # EIO: nobody has the terminal open any more
            return False
        self.shown += data.decode()
        return bool(data)


@asynccontextmanager
async def on_a_terminal(*arguments: object, **env: str):
    mine, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    python = sys.executable
    command = [python, "-c", AS_A_TERMINAL, python, "-m", "hermetic", *map(str, arguments)]
    process = await trio.lowlevel.open_process(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**env)
    )
    os.close(theirs)
    try:
        yield Terminal(mine, process)
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
        os.close(mine)


@asynccontextmanager
async def a_running_server(house: Path):
    """`hermetic serve`; gives what it printed when it was ready."""
    command = [sys.executable, "-m", "hermetic", "serve", "--bind", "127.0.0.1:0", *where(house)]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, env=environment())
    try:
        text = b""
        with trio.fail_after(WAIT_S):
            while b"/events" not in text:
                data = await process.stdout.receive_some()
                assert data, text
                text += data
        yield text.decode()
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(WAIT_S):
            assert await process.wait() == 0
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
            await process.stdout.aclose()


def session_in(text: str) -> str:
    return re.findall(r"session (?:is kept: hermetic show )?([0-9a-f]{12})", text)[-1]


# --- chat on a terminal -------------------------------------------------------------------------------------------


async def test_on_a_terminal_a_turn_streams_in_colour_after_a_spinner(house):
    async with on_a_terminal("chat", "count to 5", *where(house)) as terminal:
        before = await terminal.expect("1")
        assert "⠋" in before
        await terminal.expect("5")
        assert await terminal.exit_code() == 0
        assert "\x1b[2msession" in terminal.shown


async def test_no_color_is_respected_on_a_terminal(house):
    async with on_a_terminal("chat", "list files", *where(house), NO_COLOR="1") as terminal:
        assert await terminal.exit_code() == 0
        assert re.sub(r"\x1b\[K", "", terminal.shown).count("\x1b") == 0


async def test_ctrl_c_cancels_the_turn_and_what_was_said_is_kept(house):
    async with on_a_terminal("chat", "count to 500 slowly", *where(house), NO_COLOR="1") as terminal:
        await terminal.expect("1 2 ")
        terminal.type("\x03")
        await terminal.expect("Cancelled; what was said is kept: hermetic show ")
        assert await terminal.exit_code() == 130
        assert "Traceback" not in terminal.shown
    session = re.findall(r"hermetic show ([0-9a-f]{12})", terminal.shown)[0]
    shown = await run("show", session, *where(house))
    assert shown.returncode == 0
    assert "user:\n  count to 500 slowly\n" in shown.stdout.decode()
    assert re.search(r"assistant \(partial\):\n  1 2", shown.stdout.decode()), shown.stdout


async def test_the_second_ctrl_c_leaves_at_once_and_leaves_nobody_behind(house):
    (house / "hermetic.toml").write_text((house / "hermetic.toml").read_text().replace("1.0", "1000.0"))
    async with on_a_terminal("chat", "hi", "--agent", "stubborn", *where(house)) as terminal:
        await terminal.expect("I stay.")
        terminal.type("\x03")
        await terminal.expect("cancelling")
        terminal.type("\x03")
        assert await terminal.exit_code() == 130
        assert "Traceback" not in terminal.shown
    with trio.fail_after(WAIT_S):
        while processes_with(str(house)):  # the kernel reaps asynchronously
            await trio.sleep(0.05)


async def test_ctrl_c_before_the_turn_has_begun_starts_none(house):
    async with on_a_terminal("chat", "hi", *where(house)) as terminal:
        await terminal.expect("starting")  # the spinner turns while the server of this process comes up
        terminal.type("\x03")
        await terminal.expect("Cancelled")
        assert await terminal.exit_code() == 130
        assert "Traceback" not in terminal.shown


def processes_with(text: str) -> list[str]:
    """Command lines and environments of this machine's processes that hold `text`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in told and int(process.name) != os.getpid():
            found.append(process.name)
    return found


@pytest.mark.parametrize(
    ("typed", "told", "ran"),
    [("o\n", "allowed once", True), ("\n", "denied", False), ("maybe\nno\n", "denied", False)],
    ids=["allow once", "Enter denies", "asks again"],
)
async def test_an_approval_is_asked_on_the_terminal(house, typed, told, ran):
    async with on_a_terminal(
        "chat", "run echo $((40+2)) > made", "--workspace", house / "work", *where(house)
    ) as terminal:
        await terminal.expect("echo $((40+2)) > made")
        for line in typed.splitlines(keepends=True):
            await terminal.expect("[d]eny (Enter)? ")
            terminal.type(line)
        await terminal.expect(told)
        assert await terminal.exit_code() == 0
    assert (house / "work" / "made").exists() is ran


async def test_what_was_typed_before_the_question_does_not_answer_it(house):
    async with on_a_terminal("chat", "run touch made", "--workspace", house / "work", *where(house)) as terminal:
        terminal.type("once\n")
        await terminal.expect("[d]eny (Enter)? ")
        terminal.type("\n")
        await terminal.expect("denied")
        assert await terminal.exit_code() == 0
    assert not (house / "work" / "made").exists()


async def test_ctrl_c_at_a_question_withdraws_it_and_cancels(house):
    async with on_a_terminal("chat", "run touch made", "--workspace", house / "work", *where(house)) as terminal:
        await terminal.expect("[d]eny (Enter)? ")
        terminal.type("\x03")
        await terminal.expect("Cancelled")
        assert await terminal.exit_code() == 130
    assert not (house / "work" / "made").exists()


async def test_a_question_that_someone_else_answers_is_withdrawn(house):
    async with (
        a_running_server(house) as ready,
        on_a_terminal("chat", "run touch made", *where(house)) as terminal,
        Client(re.findall(r"http://[\d.:]+", ready)[0]) as client,
    ):
        await terminal.expect("[d]eny (Enter)? ")
        turn = (await client.list_sessions()).sessions[0].active_turn_id
        pending = (await client.get_turn(turn)).pending[0]
        await client.approve(turn, pending.approval_id, "once")
        await terminal.expect("allowed once")
        assert await terminal.exit_code() == 0


async def test_a_clarification_is_asked_on_the_terminal_and_a_number_chooses(house):
    async with on_a_terminal("chat", "ask me", *where(house)) as terminal:
        await terminal.expect("2. coffee")
        await terminal.expect("> ")
        terminal.type("2\n")
        await terminal.expect("coffee")
        assert await terminal.exit_code() == 0
        assert "coffee" in terminal.shown.split("> 2")[1]


async def test_an_agent_cannot_take_the_terminal_over(house):
    async with on_a_terminal("chat", "hi", "--agent", "loud", *where(house)) as terminal:
        assert await terminal.exit_code() == 0
        assert "red text]52;c;ZXZpbA== end" in terminal.shown
        assert not set(re.sub(r"\x1b\[(\d*m|K)", "", terminal.shown)) & set("\x1b\x07")
        assert "\x1b[31m" not in terminal.shown


# --- chat through pipes -------------------------------------------------------------------------------------------


async def test_through_a_pipe_stdout_is_the_answer_alone_without_colour_or_spinner(house):
    done = await run("chat", "-", "--agent", "echo", *where(house), stdin=b"gr\xc3\xbc\xc3\x9fe\n")
    assert (done.returncode, done.stdout.decode()) == (0, "<grüße>\n")
    assert re.fullmatch(r"session [0-9a-f]{12}\n", done.stderr.decode())


async def test_without_a_terminal_an_approval_is_denied_and_yes_is_explained(house):
    denied = await run("chat", "run touch made", "--workspace", house / "work", *where(house))
    assert denied.returncode == 0 and b"--yes" in denied.stderr
    assert not (house / "work" / "made").exists()
    allowed = await run("chat", "run touch made", "--yes", "--workspace", house / "work", *where(house))
    assert allowed.returncode == 0
    assert (house / "work" / "made").exists()


async def test_a_session_goes_on_where_it_was(house):
    session = session_in((await run("chat", "first", "--agent", "echo", *where(house))).stderr.decode())
    second = await run("chat", "second", "--session", session, *where(house))
    assert second.stdout == b"<second>\n" and session_in(second.stderr.decode()) == session
    shown = (await run("show", session, *where(house))).stdout.decode()
    assert [shown.index(text) for text in ("first", "<first>", "second", "<second>")] == sorted(
        shown.index(text) for text in ("first", "<first>", "second", "<second>")
    )
    listed = (await run("sessions", *where(house))).stdout.decode()
    assert listed.startswith(session) and "first" in listed
    assert session in (await run("sessions", "--search", "second", *where(house))).stdout.decode()


async def test_when_nobody_reads_the_answer_any_more_the_turn_is_cancelled(house):
    command = [sys.executable, "-m", "hermetic", "chat", "hi", "--agent", "long", *where(house)]
    line = " ".join(command) + " | head -c 5; exit ${PIPESTATUS[0]}"
    with trio.fail_after(WAIT_S):
        done = await trio.run_process(
            ["bash", "-c", line], capture_stdout=True, capture_stderr=True, check=False, env=environment()
        )
    assert (done.returncode, done.stdout) == (130, b"0 1 2")
    assert b"Traceback" not in done.stderr and b"Cancelled" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["chat", "hi", "--agent", "fails"], 1, "the model is away"),
        (["chat", "   "], 2, "empty"),
        (["chat", "hi", "--session", "0123456789ab"], 2, "0123456789ab"),
        (["chat", "hi", "--agent", "nobody"], 2, "nobody"),
        (["chat", "hi", "--workspace", "/nowhere/at/all"], 2, "/nowhere/at/all"),
        (["chat", "hi", "--server", "http://127.0.0.1:9"], 3, "http://127.0.0.1:9"),
        (["chat", "hi", "--server", "nonsense"], 3, "nonsense"),
        (["chat"], 2, "MESSAGE"),
        (["chat", "--frobnicate", "hi"], 2, "frobnicate"),
        (["chat", "hi", "--frobnicate"], 2, "--frobnicate"),
        (["show", "0123456789ab"], 2, "0123456789ab"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
async def test_what_goes_wrong_is_told_on_stderr_and_in_the_exit_code(house, arguments, code, told):
    done = await run(*arguments, *where(house))
    assert done.returncode == code, done.stderr
    assert told in done.stderr.decode()
    assert b"Traceback" not in done.stderr.replace("│ Traceback".encode(), b"")


# --- the other commands -------------------------------------------------------------------------------------------


async def test_the_line_that_serve_prints_streams_a_turn_when_pasted(house):
    async with a_running_server(house) as ready:
        [line] = [line for line in ready.splitlines() if "curl -N" in line]
        for shell in ("bash", "sh"):
            with trio.fail_after(WAIT_S):
                done = await trio.run_process([shell, "-c", line], capture_stdout=True, capture_stderr=True)
            assert b"event: token\n" in done.stdout
            assert b"event: done\n" in done.stdout
            assert b"event: stream_end\n" in done.stdout.split(b"\n\n")[-2]


async def test_chat_talks_to_the_server_that_holds_the_data_directory(house):
    async with a_running_server(house) as ready:
        done = await run("chat", "hi", "--agent", "echo", *where(house))
        assert (done.returncode, done.stdout) == (0, b"<hi>\n")
        async with Client(re.findall(r"http://[\d.:]+", ready)[0]) as client:
            sessions = (await client.list_sessions()).sessions
        assert [session.session_id for session in sessions] == [session_in(done.stderr.decode())]


async def test_chat_starts_its_own_server_when_the_note_of_one_is_stale(house):
    (house / "data").mkdir()
    (house / "data" / "server.json").write_text('{"url":"http://127.0.0.1:9","pid":1}')
    done = await run("chat", "hi", "--agent", "echo", *where(house))
    assert (done.returncode, done.stdout) == (0, b"<hi>\n")


@pytest.mark.parametrize("command", [["serve"], ["chat", "hi"], ["config", "show"], ["sessions"]])
async def test_a_wrong_configuration_is_told_in_two_lines(house, command):
    (house / "hermetic.toml").write_text("[turns]\ngrace = 1\n")
    done = await run(*command, *where(house))
    what, hint = done.stderr.decode().splitlines()
    assert done.returncode == 2 and done.stdout == b""
    assert "grace_s" in what and hint


async def test_serve_refuses_an_address_that_others_can_reach_without_insecure(house):
    done = await run("serve", "--bind", "0.0.0.0:0", *where(house))
    assert done.returncode == 2
    assert b"--insecure" in done.stderr


async def test_doctor_tells_programs_and_people_what_this_host_can_do(house):
    done = await run("doctor", "--json", *where(house))
    report = msgspec.json.decode(done.stdout)
    assert done.returncode == 0
    assert type(report["level"]) is int and report["level"] == report["seal"]["level"]
    assert {"mechanisms", "missing"} <= set(report["seal"])
    assert report["data"]["writable"] and report["config"]["ok"]
    text = (await run("doctor", *where(house))).stdout.decode()
    assert "seal level" in text and "Turns can run here." in text
    assert all(name in text for name in report["seal"]["missing"])
    assert not (house / "data").exists()


async def test_doctor_finds_what_is_wrong(house):
    (house / "hermetic.toml").write_text("[turns]\ngrace = 1\n")
    (house / "file").write_text("")
    done = await run("doctor", "--json", "--config", house / "hermetic.toml", "--data", house / "file" / "data")
    report = msgspec.json.decode(done.stdout)
    assert done.returncode == 2
    assert not report["config"]["ok"] and "grace_s" in report["config"]["problem"]
    assert not report["data"]["writable"]


async def test_the_version_and_the_help_are_there():
    assert (await run("--version")).stdout.startswith(b"hermetic ")
    text = (await run("--help")).stdout.decode()
    assert all(word in text for word in ("serve", "chat", "doctor", "config", "sessions", "show", "Exit codes", "130"))


async def test_config_show_prints_what_is_in_force(house):
    done = await run("config", "show", *where(house))
    assert done.returncode == 0
    assert b"grace_s = 1.0" in done.stdout
