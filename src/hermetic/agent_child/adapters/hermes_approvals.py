"""Approvals of hermes-agent, which have no ids, under ours, which do.

The agent keeps a queue for each session key and wakes whoever asked first (`resolve_gateway_approval`). Two tools may
ask at the same time, and a person may answer the second first; an answer must then not let the first one run. So an
answer is given to the very request that it is for. Where an installed version's queue cannot be seen, answers wait for
those before them.
"""

from __future__ import annotations

import _thread
import json
import os
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from hermetic.agent_child.adapters.hermes_rules import offered
from hermetic.agent_child.out import Out, Question

PATTERNS_MAX: Final = 1000
"""Kept of one session's approvals; the agent has about a hundred patterns."""


class Approvals:
    """Between the agent's `tools.approval` and `out`, for one turn."""

    def __init__(self, module: Any, out: Out, *, key: str, remembered: Path, wait_s: float) -> None:
        self._module = module
        self._out = out
        self._key = key
        self._remembered = remembered
        self._lock = threading.Lock()
        self._in_order: list[tuple[Mapping[str, Any], Question]] = []
        for pattern in self._read():
            module.approve_session(key, pattern)
        if hasattr(module, "set_current_session_key"):
            module.set_current_session_key(key)
        module.register_gateway_notify(key, self._asked)
        if hasattr(module, "_get_approval_timeout"):
            # The agent would give up after its own 60 s, while our question still stands on the screen.
            module._get_approval_timeout = lambda: wait_s

    def _asked(self, request: Mapping[str, Any]) -> None:
        """In the thread of the tool that asks; it waits after we return."""
        with self._lock:  # held over both, so that the order of the list is that of the ids
            question = self._out.ask_approval(
                str(request.get("command") or ""),
                str(request.get("description") or ""),
                choices=offered(request),
                pattern_key=str(request.get("pattern_key") or ""),
                pattern_keys=[str(key) for key in request.get("pattern_keys") or ()],
            )
            self._in_order.append((request, question))
        question.when_answered(lambda choice: self._answered(request, choice))

    def _answered(self, request: Mapping[str, Any], choice: str) -> None:
        """In the thread that reads commands, or in a signal's handler; it may come twice."""
        # A thread of its own: the handler may have interrupted a holder of the locks below.
        _thread.start_new_thread(self._settle, (request, choice))

    def _settle(self, request: Mapping[str, Any], choice: str) -> None:
        with self._lock:
            if not any(asked is request for asked, _ in self._in_order):
                return
            if choice == "session":
                self._remember(request)
            if hasattr(self._module, "_gateway_queues"):
                self._in_order = [pair for pair in self._in_order if pair[0] is not request]
                self._wake(request, choice)
                return
            while self._in_order and (answer := self._in_order[0][1].answer) is not None:
                self._in_order.pop(0)
                self._module.resolve_gateway_approval(self._key, answer)

    def _wake(self, request: Mapping[str, Any], choice: str) -> None:
        with self._module._lock:
            queue = self._module._gateway_queues.get(self._key, [])
            entry = next((entry for entry in queue if entry.data is request), None)
            if entry is None:  # the agent has given up on it
                return
            queue.remove(entry)
            if not queue:
                self._module._gateway_queues.pop(self._key, None)
        entry.result = choice
        entry.event.set()

    # --- 'session' outlives the turn's process -------------------------------------------------------------------

    def _read(self) -> list[str]:
        try:
            patterns = json.loads(self._remembered.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [pattern for pattern in patterns if isinstance(pattern, str)][:PATTERNS_MAX]

    def _remember(self, request: Mapping[str, Any]) -> None:
        patterns = dict.fromkeys([*self._read(), *map(str, request.get("pattern_keys") or ())])
        with suppress(OSError):  # then it is asked again in the next turn
            self._remembered.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            unfinished = self._remembered.with_suffix(".new")
            unfinished.write_text(json.dumps(list(patterns)[:PATTERNS_MAX]), encoding="utf-8")
            unfinished.replace(self._remembered)


def carry_over(home: str, before: str, after: str) -> None:
    """What was approved for a session holds where it goes on under another id."""
    with suppress(OSError):  # there was nothing; or it is asked again
        remembered_in(home, after).write_bytes(remembered_in(home, before).read_bytes())


def remembered_in(home: str, session_id: str) -> Path:
    """Beside the agent's own permanent list, which is in the same home: both are the profile's."""
    name = re.sub(r"[^\w-]", "_", session_id)
    return Path(home or os.path.expanduser("~/.hermes")) / ".hermetic" / "session-approvals" / f"{name}.json"
