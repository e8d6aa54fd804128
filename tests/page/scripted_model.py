"""The agent of the page's tests: a scripted model behind the real server, which says what the message asks for."""

from __future__ import annotations

import os
import signal
import sys
import time

from hermetic.agent_child.turn import Turn

TALE = """\
## What I found

The build fails because **`settings.py`** reads `TIMEOUT` before it is set. Three things are worth a look:

1. `load()` runs at import, so the order of imports decides.
2. The default is text, and `time.sleep` wants a number.
3. Nothing tests it.

```python
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    timeout_s: float = 30.0  # seconds, not milliseconds

def load(environ: dict[str, str]) -> Settings:
    return Settings(timeout_s=float(environ.get("TIMEOUT", 30)))
```

| file | change | risk |
| --- | --- | --- |
| `settings.py` | read the environment when asked | low |
| `worker.py` | take `Settings` as an argument | low |
| `tests/` | one new test | none |

> The old behaviour stays for who sets `TIMEOUT` today.

Shall I make the change? More in [the documentation](https://example.org/settings).
"""


def agent(turn: Turn) -> None:
    text = turn.message
    if text.startswith("count to "):
        count(turn, int(text.split()[2]), 0.1 if "slowly" in text else 0)
    elif text.startswith("run "):
        run(turn, text.removeprefix("run "))
    elif text == "ask me":
        turn.token(f"You like {turn.clarify('Which colour?', ['red', 'blue'])}.")
    elif text == "crash":
        turn.token("Before the crash.")
        print("Fatal Python error: oops", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    elif text.startswith("say "):
        turn.token(text.removeprefix("say "))
    elif text == "lines":
        lines(turn)
    elif text.startswith("look"):
        look(turn)
    else:
        turn.token(f"You said: {text}")
    turn.usage(input_tokens=1840, output_tokens=412, estimated_cost=0.0093)


def count(turn: Turn, last: int, pause_s: float) -> None:
    turn.reasoning("One after the other.\n")
    for n in range(1, last + 1):
        turn.token(f"{n} ")
        time.sleep(pause_s)
    for said in turn.steers():
        turn.token(f"You said: {said}")


def run(turn: Turn, command: str) -> None:
    turn.token("I ask before I run a command.\n\n")
    with turn.tool("shell", {"command": command}, preview=command) as call:
        if turn.approve(command, "A shell command in the workspace.") == "deny":
            call.complete("denied", is_error=True)
            turn.token("Not run: denied.")
        else:
            call.complete("hi")
            turn.token("It printed:\n\n    hi\n")


def lines(turn: Turn) -> None:
    """5,000 lines of every kind, as fast as a process can say them."""
    number = 0
    while number < 5000:
        kind = number // 500 % 5
        if number % 500 == 0:
            turn.token({1: "\n", 2: "\n```python\n", 3: "\n| line | of |\n| --- | --- |\n", 4: "\n"}.get(kind, "\n"))
        turn.token(
            ("line {0} of a long answer that wraps on a phone", "- line {0} with **bold** words", "line_{0} = {0}")[
                kind
            ].format(number)
            + "\n"
            if kind < 3
            else f"| line {number} | a table |\n"
            if kind == 3
            else f"> line {number} that is quoted\n"
        )
        number += 1
        if kind == 2 and number % 500 == 0:
            turn.token("```\n")


def look(turn: Turn) -> None:
    turn.title("Why the build fails")
    turn.reasoning("The traceback names `settings.py`. I read it first, then look for who imports it.\n")
    with turn.tool("read_file", {"path": "settings.py", "lines": "1-40"}, preview="settings.py") as call:
        time.sleep(0.12)
        call.complete("TIMEOUT = os.environ['TIMEOUT']\n\ndef load():\n    return TIMEOUT")
    with turn.tool("search", {"pattern": "import settings"}, preview="import settings") as call:
        time.sleep(0.05)
        call.complete("worker.py:3: import settings\nweb.py:9: import settings")
    with turn.tool("shell", {"command": "python -m pytest -q"}, preview="python -m pytest -q") as call:
        time.sleep(0.3)
        call.complete("KeyError: 'TIMEOUT'", is_error=True)
    pause_s = 0.02 if "slowly" in turn.message else 0
    for word in TALE.split(" "):
        turn.token(word + " ")
        time.sleep(pause_s)
