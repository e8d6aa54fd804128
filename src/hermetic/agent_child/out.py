"""What an adapter speaks through: events out, questions out and their answers in."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count
from queue import Empty, SimpleQueue

from hermetic.agent_child.emitter import Emitter
from hermetic.protocol.events import Approval, Choice, Clarify, ForwardedEvent

CHOICES: tuple[Choice, ...] = ("once", "session", "always", "deny")
_LATE_S = 3.0
"""The supervisor answers when a question has expired; only if that answer does not come either, the child gives up."""


class Question:
    """An approval or a clarification that waits. The first answer counts, all later ones do nothing."""

    def __init__(self, fallback: str, wait_s: float) -> None:
        self.wait_s = wait_s
        self.answer: str | None = None
        self._fallback = fallback
        # SimpleQueue, because a signal handler answers too: its put() may interrupt a get() of the same thread.
        self._answers: SimpleQueue[str] = SimpleQueue()
        self._tell: Callable[[str], None] | None = None

    def resolve(self, answer: str) -> None:
        if self.answer is None:
            self.answer = answer
            self._answers.put(answer)
            if self._tell is not None:
                self._tell(answer)

    def give_up(self) -> None:
        """Answers with deny, or with the empty text."""
        self.resolve(self._fallback)

    def wait(self) -> str:
        """Blocks until there is an answer."""
        try:
            return self._answers.get(timeout=self.wait_s)
        except Empty:
            self.give_up()
            return self._fallback

    def when_answered(self, tell: Callable[[str], None]) -> None:
        """Calls `tell` in the thread that answers, at once when that has been; it may be called twice."""
        self._tell = tell
        if self.answer is not None:
            tell(self.answer)


class Out:
    """One turn's way out. Every method may be called from any thread."""

    def __init__(self, emitter: Emitter, approval_s: float) -> None:
        self._emitter = emitter
        self._approval_s = approval_s
        self._open: dict[str, Question] = {}
        self._numbers = count(1)
        self._released = False

    def emit(self, event: ForwardedEvent) -> None:
        """Sends an event; blocks while the supervisor does not read."""
        self._emitter.emit(event)

    def ask_approval(
        self,
        command: str,
        description: str = "",
        *,
        choices: Sequence[Choice] = CHOICES,
        pattern_key: str = "",
        pattern_keys: Sequence[str] = (),
    ) -> Question:
        """Asks before the agent acts. The answer is a `Choice`; `deny` after `approval_s`, and when the turn ends."""
        name = f"approval-{next(self._numbers)}"
        event = Approval(
            approval_id=name,
            command=command,
            description=description,
            pattern_key=pattern_key,
            pattern_keys=list(pattern_keys),
            choices=list(choices),
            expires_at=time.time() + self._approval_s,
        )
        return self._ask(name, event, "deny")

    def ask_clarify(self, question: str, choices: Sequence[str] = ()) -> Question:
        """Asks a question. The answer is the user's text; empty after `approval_s`, and when the turn ends."""
        name = f"clarify-{next(self._numbers)}"
        event = Clarify(
            clarify_id=name, question=question, choices=list(choices), expires_at=time.time() + self._approval_s
        )
        return self._ask(name, event, "")

    def _ask(self, name: str, event: Approval | Clarify, fallback: str) -> Question:
        question = Question(fallback, self._approval_s + _LATE_S)
        if self._released:
            question.give_up()
            return question
        self._open[name] = question  # before the event: the answer may come at once
        self.emit(event)
        if self._released:  # a cancel came between the two lines above
            question.give_up()
        return question

    def answer(self, name: str, answer: str) -> None:
        """From the supervisor. An unknown id is one that was answered before."""
        question = self._open.pop(name, None)
        if question is not None:
            question.resolve(answer)

    def release(self) -> None:
        """The turn is cancelled: nobody will answer any more."""
        self._released = True
        for question in list(self._open.values()):
            question.give_up()
