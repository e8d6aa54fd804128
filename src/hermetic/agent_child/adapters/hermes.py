"""The adapter for hermes-agent: `adapter = "hermes"`. See docs/hermes.md.

The process is born with the right environment and runs one turn, so the agent is made anew, with the profile's
configuration of this moment, and nothing is put back afterwards. Versions of the agent differ: it is given what its
signatures show, and its callbacks are heard in the shapes that all versions use.
"""

from __future__ import annotations

import _thread
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

import msgspec

from hermetic.agent_child.adapters import hermes_rules as rules
from hermetic.agent_child.adapters.hermes_approvals import Approvals, carry_over, remembered_in
from hermetic.agent_child.failures import CannotRun, without_paths
from hermetic.agent_child.interrupts import TurnCancelled
from hermetic.agent_child.out import Out
from hermetic.protocol.commands import Start
from hermetic.protocol.events import (
    Compressed,
    Compressing,
    InterimAssistant,
    Metering,
    PendingSteerLeftover,
    Reasoning,
    Result,
    Token,
    Tool,
    ToolComplete,
    Usage,
    Warning,
)
from hermetic.protocol.framing import frame

INSTALL = (
    "Run `python -m pip install hermes-agent` in the environment of the agent's `interpreter`; "
    "without one in its section of the configuration, in the server's own."
)
OPTIONS = ("max_iterations", "sync_insights", "toolsets")
AGAIN_S = 0.5
"""Between two interrupts of a cancelled turn: one that comes while the agent begins a step may be forgotten by it."""
_EARLY_S = 0.05


class HermesAdapter:
    def __init__(self) -> None:
        self._agent: Any = None
        self._interrupted = False
        self._over = False
        self._early_steers: deque[str] = deque()

    # --- the interface --------------------------------------------------------------------------------------------

    def run(self, start: Start, out: Out) -> Result:
        options = _options(start)
        # A turn must not install packages into the environment that other turns are running in.
        os.environ.setdefault("HERMES_DISABLE_LAZY_INSTALLS", "1")
        agent_class = _load("run_agent").AIAgent  # first: the import reads the profile's .env
        voice = Voice(out)
        config = _configuration()
        agent = _construct(agent_class, start, out, voice, config, options)
        Approvals(
            _load("tools.approval"),
            out,
            key=f"{start.session_id}:{start.turn_id}",
            remembered=remembered_in(os.environ.get("HERMES_HOME", ""), start.session_id),
            wait_s=start.approval_s + 60,
        )
        self._agent = agent
        if self._interrupted:
            raise TurnCancelled
        self._steer_early()
        message = rules.with_attachments(start.message, start.attachments)
        arguments = {
            "user_message": rules.tagged(message, start.workspace),
            "system_message": rules.workspace_prompt(start.workspace),
            "conversation_history": [dict(row) for row in start.history],
            "task_id": start.session_id,
            "persist_user_message": message,
        }
        try:
            result = agent.run_conversation(**rules.accepted(agent.run_conversation, arguments))
        finally:
            self._over = True
        return _conclude(start, out, voice, agent, result if isinstance(result, Mapping) else {})

    def interrupt(self) -> None:
        first, self._interrupted = not self._interrupted, True
        if self._agent is None:  # still being imported or made
            raise TurnCancelled
        if first:
            # In a thread: the agent's locks may be held by the very code that this handler interrupts.
            _thread.start_new_thread(self._keep_interrupting, ())

    def _keep_interrupting(self) -> None:
        wait_s = _EARLY_S
        while not self._over:
            try:
                self._agent.interrupt()
            except Exception as error:  # noqa: BLE001  the turn is being ended, and there is a kill after this
                sys.stderr.write(f"hermetic: the agent's interrupt() failed: {error!r}\n")
            time.sleep(wait_s)
            wait_s = AGAIN_S

    def steer(self, text: str) -> None:
        if self._agent is None:
            self._early_steers.append(text)
            if self._agent is None:
                return
            self._steer_early()
        else:
            self._agent.steer(text)

    def _steer_early(self) -> None:
        while self._early_steers:
            self._agent.steer(self._early_steers.popleft())


class Voice:
    """The agent's callbacks, as events. All may come from any thread."""

    def __init__(self, out: Out) -> None:
        self._out = out
        self.said: list[str] = []
        self.newest: list[str] = []
        """Of these, what came after the last end marker."""
        self.compressed = False
        self.hears_reasoning = True
        """False for a version without a callback for it."""
        self.hears_tools = True
        self._previews: dict[str, deque[str]] = {}
        self._ends: dict[str, deque[tuple[float | None, bool]]] = {}
        self._unnamed = 0

    def stream_delta(self, text: str | None) -> None:
        """None is an end marker."""
        if text is None:
            self.newest.clear()
        if text:
            self.said.append(text)
            self.newest.append(text)
            self._out.emit(Token(text=text))

    def reasoning(self, text: str | None) -> None:
        if text:
            self._out.emit(Reasoning(text=text))

    def interim(self, text: str | None, *_: Any, already_streamed: bool = False, **__: Any) -> None:
        if text:
            if not already_streamed:
                self.said.append(text)
            self._out.emit(InterimAssistant(text=text, already_streamed=already_streamed))

    def tool_progress(self, *said: Any, **about: Any) -> None:
        """`(kind, name, preview, args, …)`, and of older versions `(name, preview, args)`."""
        texts = [part if isinstance(part, str) else "" for part in said]
        kind = texts[0] if texts else ""
        if kind == "_thinking" or kind.startswith("reasoning"):
            self._thought(texts[-1] if kind == "_thinking" else next((t for t in texts[2:] if t), ""))
        elif kind == "tool.started":
            self._tool_begins(*_padded(said[1:]))
        elif kind == "tool.completed":
            duration_s = about.get("duration")
            end = (float(duration_s) if isinstance(duration_s, int | float) else None, bool(about.get("is_error")))
            self._ends.setdefault(texts[1], deque()).append(end)
        elif kind and "." not in kind:
            self._tool_begins(*_padded(said))

    def _thought(self, text: str) -> None:
        if not self.hears_reasoning and not rules.is_visible(text, self.said):
            self.reasoning(text)

    def _tool_begins(self, name: Any, preview: Any, args: Any) -> None:
        if self.hears_tools:  # tool_start comes with the id
            self._previews.setdefault(str(name), deque()).append(str(preview or ""))
        else:
            self._unnamed += 1
            tid = f"tool-{self._unnamed}"
            self._out.emit(Tool(name=str(name), preview=str(preview or ""), args=rules.shown_args(args), tid=tid))

    def tool_start(self, tid: Any, name: str, args: Any = None, *_: Any) -> None:
        previews = self._previews.get(name)
        preview = previews.popleft() if previews else ""
        self._out.emit(Tool(name=name, preview=preview, args=rules.shown_args(args), tid=str(tid or "")))

    def tool_complete(self, tid: Any, name: str, _args: Any = None, result: Any = None, *_: Any) -> None:
        ends = self._ends.get(name)
        duration_s, is_error = ends.popleft() if ends else (None, False)
        self._out.emit(
            ToolComplete(
                name=name,
                tid=str(tid or ""),
                snippet=rules.snippet(result),
                is_error=is_error,
                duration_s=duration_s,
            )
        )

    def status(self, kind: str, text: str = "", *_: Any) -> None:
        text = without_paths(str(text)).strip()
        if not text:
            return
        if "compress" in text.lower() or "compact" in text.lower():
            self._out.emit(Compressing(message=text))
        else:
            self._out.emit(Warning(message=text, code=f"agent_{kind}" if kind.isidentifier() else "agent_status"))

    def happened(self, name: str, _about: Any = None) -> None:
        if name == "session:compress":
            self.has_compressed()

    def has_compressed(self) -> None:
        if not self.compressed:
            self.compressed = True
            self._out.emit(Compressed(message="The agent has shortened its context to go on."))

    def clarify(self, question: Any, choices: Any = None, *_: Any) -> str:
        """Blocks until the user answers; empty when nobody does."""
        named = [str(choice) for choice in choices] if isinstance(choices, list | tuple) else []
        return self._out.ask_clarify(str(question), named).wait()


def _padded(said: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    name, preview, args, *_ = (*said, None, None, None)
    return name, preview, args


# --- before the run -----------------------------------------------------------------------------------------------


def _options(start: Start) -> Mapping[str, Any]:
    for name in start.options:
        if name not in OPTIONS:
            raise CannotRun(
                f'the adapter "hermes" has no option "{name}"',
                hint=f"It has {', '.join(OPTIONS)}; all else stands in the profile's own config.yaml.",
                fault="host",
            )
    return start.options


def _load(name: str) -> Any:
    """A module of hermes-agent. Raises CannotRun when the package is not there."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise CannotRun("hermes-agent is not installed where this agent runs", hint=INSTALL, fault="host") from None
        raise CannotRun(
            f"hermes-agent is installed, but a module that it needs is not: {error.name}", hint=INSTALL, fault="host"
        ) from error


def _configuration() -> Mapping[str, Any]:
    """The profile's, as it is now. Raises CannotRun when it cannot be read."""
    try:
        config = _load("hermes_cli.config").load_config()
    except CannotRun:
        raise
    except Exception as error:
        raise CannotRun(
            f"the profile's config.yaml cannot be read: {without_paths(str(error))}",
            hint="Correct the file in the profile's home.",
            fault="host",
        ) from error
    return config if isinstance(config, Mapping) else {}


def _construct(
    agent_class: Any, start: Start, out: Out, voice: Voice, config: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    choice = rules.resolve_model(start.model, config.get("model"))
    runtime = _runtime(choice, out)
    personality = None
    try:
        personality = rules.personality_prompt(config, start.personality)
    except KeyError:
        out.emit(
            Warning(
                message=f'The profile has no personality "{start.personality}"; the agent answers as itself.',
                code="unknown_personality",
                fault="host",
                hint="Define it under agent.personalities in the profile's config.yaml.",
            )
        )
    callbacks: dict[str, Callable[..., Any]] = {
        "stream_delta_callback": voice.stream_delta,
        "reasoning_callback": voice.reasoning,
        "interim_assistant_callback": voice.interim,
        "tool_progress_callback": voice.tool_progress,
        "tool_start_callback": voice.tool_start,
        "tool_complete_callback": voice.tool_complete,
        "status_callback": voice.status,
        "event_callback": voice.happened,
        "clarify_callback": voice.clarify,
    }
    arguments: dict[str, Any] = {
        "model": choice.model,
        "provider": runtime.get("provider") or choice.provider,
        "base_url": choice.base_url or runtime.get("base_url"),
        "api_key": runtime.get("api_key"),
        "api_mode": runtime.get("api_mode"),
        "acp_command": runtime.get("command"),
        "acp_args": runtime.get("args"),
        "credential_pool": runtime.get("credential_pool"),
        "enabled_toolsets": options.get("toolsets") or rules.toolsets(config),
        "fallback_model": rules.fallback_model(config),
        "ephemeral_system_prompt": personality,
        "session_id": start.session_id,
        "session_db": _session_db(config, out),
        "platform": "cli",
        "quiet_mode": True,
        **({"max_iterations": options["max_iterations"]} if "max_iterations" in options else {}),
        **callbacks,
    }
    passed = rules.accepted(agent_class.__init__, arguments)
    voice.hears_reasoning = "reasoning_callback" in passed
    voice.hears_tools = "tool_start_callback" in passed
    return agent_class(**{name: value for name, value in passed.items() if value is not None})


def _session_db(config: Mapping[str, Any], out: Out) -> Any:
    """The agent's own store, for a profile with `compression.in_place: false`: there alone the agent can go on under
    another session id, and without the store it compresses in place."""
    section = config.get("compression")
    if not isinstance(section, Mapping) or section.get("in_place") is not False:
        return None
    try:
        return import_module("hermes_state").SessionDB()
    except Exception as error:  # noqa: BLE001  the turn can do without
        out.emit(
            Warning(
                message=f"The agent's own session store cannot be used: {without_paths(str(error))}",
                code="no_session_store",
                hint="The agent keeps its session's id when it compresses.",
            )
        )
        return None


def _runtime(choice: rules.ModelChoice, out: Out) -> Mapping[str, Any]:
    """Key, provider, base URL and more from the agent's own resolver; what it cannot resolve is a warning."""
    try:
        resolve = import_module("hermes_cli.runtime_provider").resolve_runtime_provider
        # Without the base URL: given one, the resolver does not look at the key that the profile has beside it.
        wanted = {"requested": choice.provider, "target_model": choice.model}
        found = resolve(**rules.accepted(resolve, wanted))
    except Exception as error:  # noqa: BLE001  whatever it is, the run itself will say it better
        out.emit(
            Warning(
                message=f"No credentials were found for the model's provider: {without_paths(str(error))}",
                code="provider_not_resolved",
                fault="host",
                hint="Put the provider's key into the profile's .env, or name a provider in its config.yaml.",
            )
        )
        return {}
    return found if isinstance(found, Mapping) else {}


# --- after the run ------------------------------------------------------------------------------------------------


def _conclude(start: Start, out: Out, voice: Voice, agent: Any, result: Mapping[str, Any]) -> Result:
    """Raises CannotRun for a run that failed without raising."""
    compressor = getattr(agent, "context_compressor", None)
    usage = rules.usage_of(result, compressor)
    out.emit(Metering(usage=usage))
    session_id = getattr(agent, "session_id", None) or result.get("session_id")
    rotated = str(session_id) if session_id and session_id != start.session_id else None
    if rotated:
        carry_over(os.environ.get("HERMES_HOME", ""), start.session_id, rotated)
    if start.options.get("sync_insights"):
        model = str(getattr(agent, "model", None) or start.model or "")
        _sync_insights(start, out, usage, model, rotated or start.session_id)
    if rotated or (getattr(compressor, "compression_count", 0) or 0) > 0:
        voice.has_compressed()
    if steer := result.get("pending_steer"):
        out.emit(PendingSteerLeftover(text=str(steer)))
    if failure := rules.failure_of(result):
        raise failure
    interrupted = bool(result.get("interrupted"))
    if not interrupted:
        answer = str(result.get("final_response") or "")
        voice.stream_delta(rules.unsaid(answer, "".join(voice.said), "".join(voice.newest)))
    if not voice.said and not interrupted:
        raise CannotRun(
            "the agent ended without an answer",
            hint="Send the message again; if that does not help, try another model.",
        )
    messages = rules.stored(result.get("messages"))
    own, same = rules.this_turns(messages, start.history)
    last = Result(
        usage=usage,
        interrupted=interrupted,
        session_id=rotated,
        turn_messages=own or None,
        messages=None if same or not messages else messages,
    )
    if interrupted or len(frame(last)) > start.frame_bytes_max:  # what was said is in the events
        last = msgspec.structs.replace(last, messages=None, turn_messages=None)
    return last


def _sync_insights(start: Start, out: Out, usage: Usage, model: str, session_id: str) -> None:
    """The session's totals into the agent's own store, where `hermes insights` counts them. Never breaks a turn."""
    try:
        store = import_module("hermes_state").SessionDB()
        store.ensure_session(session_id, source="hermetic", model=model)
        totals = {
            "input_tokens": start.used.input_tokens + usage.input_tokens,
            "output_tokens": start.used.output_tokens + usage.output_tokens,
            "estimated_cost_usd": start.used.estimated_cost + usage.estimated_cost,
        }
        store.update_token_counts(session_id, **totals, model=model, absolute=True)
        if start.title:
            with suppress(ValueError):  # another session has this title already
                store.set_session_title(session_id, start.title)
    except Exception as error:  # noqa: BLE001  whatever the store's trouble is, the answer stands
        out.emit(
            Warning(
                message=f"The turn's usage was not written to the insights: {without_paths(str(error))}",
                code="insights_not_synced",
                hint="Everything else of the turn is as it should be.",
            )
        )
