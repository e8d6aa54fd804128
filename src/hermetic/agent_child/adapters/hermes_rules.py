"""What the hermes adapter decides, as plain functions over values: nothing of hermes-agent is imported here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter, signature
from typing import Any, Final, NamedTuple

from hermetic.agent_child.failures import RATE_LIMIT_HINT, CannotRun, without_paths
from hermetic.agent_child.turn import ARG_CHARS_MAX, ARGS_MAX, SNIPPET_CHARS_MAX
from hermetic.protocol.events import Choice, Usage

# --- model --------------------------------------------------------------------------------------------------------

VENDORS: Final = frozenset({
    "ai21", "alibaba", "amazon", "anthropic", "arcee-ai", "baidu", "bytedance", "cohere", "copilot", "deepseek",
    "gemini", "google", "inception", "kimi-coding", "liquid", "meta-llama", "microsoft", "minimax", "mistralai",
    "moonshotai", "nous", "nousresearch", "nvidia", "openai", "openai-codex", "perplexity", "qwen", "stepfun",
    "tencent", "x-ai", "xai", "xiaomi", "z-ai", "zai",
})  # fmt: skip
"""Prefixes of `vendor/model` that OpenRouter serves; any other prefix belongs to the model's own name."""


class ModelChoice(NamedTuple):
    """What to ask the provider's resolver for; None: whatever the profile says."""

    model: str
    provider: str | None = None
    base_url: str | None = None


def resolve_model(wanted: str | None, configured: Any) -> ModelChoice:
    """The session's model and the profile's `model` section (a mapping, or the model's name) → what to run.

    `@provider:model` names the provider. Of `a/b`: with the provider openrouter the id stays whole; a prefix that is
    the provider is taken off; that of another vendor goes to openrouter, without the base URL of the configured one.
    """
    section = configured if isinstance(configured, Mapping) else {"default": configured}
    provider, base_url = _text(section.get("provider")), _text(section.get("base_url"))
    model = (wanted or "").strip() or _text(section.get("default")) or _text(section.get("model")) or ""
    if model.startswith("@") and ":" in model:
        named, _, rest = model[1:].partition(":")
        return ModelChoice(rest, named, base_url if named == provider else None)
    prefix, slash, rest = model.partition("/")
    if not slash or provider == "openrouter":
        return ModelChoice(model, provider, base_url)
    if prefix == provider:
        return ModelChoice(rest, provider, base_url)
    if prefix in VENDORS:
        return ModelChoice(model, "openrouter", None)
    return ModelChoice(model, provider, base_url)


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


# --- configuration ------------------------------------------------------------------------------------------------

DEFAULT_TOOLSETS: Final = (
    "browser", "clarify", "code_execution", "cronjob", "delegation", "file", "image_gen", "memory", "session_search",
    "skills", "terminal", "todo", "tts", "vision", "web",
)  # fmt: skip
"""Of an agent whose profile names none."""


def toolsets(config: Mapping[str, Any]) -> list[str]:
    """`platform_toolsets.cli` of the profile's configuration, else the default list."""
    platforms = config.get("platform_toolsets")
    named = platforms.get("cli") if isinstance(platforms, Mapping) else None
    return [str(name) for name in named] if isinstance(named, list) and named else list(DEFAULT_TOOLSETS)


def fallback_model(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """`fallback_model` with its `model`, `provider` and `base_url`; None when it names no model."""
    section = config.get("fallback_model")
    if not isinstance(section, Mapping) or not _text(section.get("model")):
        return None
    return {key: _text(section.get(key)) for key in ("model", "provider", "base_url")}


def personality_prompt(config: Mapping[str, Any], name: str | None) -> str | None:
    """The text of `agent.personalities[name]`; None when no name is asked for. Raises KeyError for an unknown one."""
    if not name:
        return None
    section = config.get("agent")
    known = section.get("personalities") if isinstance(section, Mapping) else None
    if not isinstance(known, Mapping):
        raise KeyError(name)
    value = known[name]
    if not isinstance(value, Mapping):
        return str(value)
    lines = [_text(value.get("system_prompt")) or _text(value.get("prompt"))]
    lines += [f"{key.capitalize()}: {text}" for key in ("tone", "style") if (text := _text(value.get(key)))]
    return "\n".join(line for line in lines if line)


def accepted(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the installed version's signature shows."""
    parameters = signature(function).parameters
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(arguments)
    return {name: value for name, value in arguments.items() if name in parameters}


# --- prompt -------------------------------------------------------------------------------------------------------

_TAG = re.compile(r"\A\s*\[Workspace: [^\]\n]*\]\n?")


def tagged(message: str, workspace: str) -> str:
    return f"[Workspace: {workspace}]\n{message}"


def untagged(text: str) -> str:
    return _TAG.sub("", text, count=1)


def workspace_prompt(workspace: str) -> str:
    return (
        f"You are working in the folder {workspace}. Every message of the user begins with a tag of the form "
        "[Workspace: /absolute/path]. This tag alone decides the working directory of every file and shell tool: "
        "resolve relative paths against it, and run commands in it. When messages carry different tags, the newest "
        "one counts, whatever was used before. Never fall back to a fixed path such as a home directory. The tag is "
        "put there by the host, not by the user: do not mention it."
    )


def with_attachments(message: str, attachments: list[str]) -> str:
    return f"{message}\n\n[Attached files: {', '.join(attachments)}]" if attachments else message


# --- tools --------------------------------------------------------------------------------------------------------


def shown_args(args: Any) -> dict[str, str]:
    """The first 4 keys, each value as text cut to 120 characters and `...`."""
    pairs = list(args.items())[:ARGS_MAX] if isinstance(args, Mapping) else []
    return {_short(key): _short(value) for key, value in pairs}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= ARG_CHARS_MAX else text[:ARG_CHARS_MAX] + "..."


def snippet(result: Any) -> str:
    """Of a tool's result: its JSON's `output`, `result` or `error`, else the raw text; 200 characters."""
    text = result if isinstance(result, str) else "" if result is None else str(result)
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, Mapping):
        text = str(parsed.get("output") or parsed.get("result") or parsed.get("error") or text)
    return text[:SNIPPET_CHARS_MAX]


def offered(asked: Mapping[str, Any]) -> list[Choice]:
    """The choices of an approval: what an assessment has refused is for once, a scanner's warning never for always."""
    if asked.get("smart_denied"):
        return ["once", "deny"]
    return ["once", "session", "always", "deny"] if asked.get("allow_permanent", True) else ["once", "session", "deny"]


# --- result -------------------------------------------------------------------------------------------------------

KEPT_KEYS: Final = ("role", "content", "tool_calls", "tool_call_id", "name", "refusal", "reasoning", "timestamp")
"""Of a message that is stored: what providers know, what a reader is shown, and when it was."""
_SAME_KEYS: Final = ("role", "content", "tool_calls", "tool_call_id")


def stored(messages: Any) -> list[dict[str, Any]]:
    """The agent's messages as they are kept: mappings with a role, without the workspace's tag, JSON all through."""
    kept = []
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, Mapping) and message.get("role"):
            row = {key: message.get(key) for key in KEPT_KEYS if key == "content" or message.get(key) is not None}
            if row["role"] == "user":
                row["content"] = _untagged_content(row["content"])
            kept.append(json.loads(json.dumps(row, default=str)))
    return kept


def _untagged_content(content: Any) -> Any:
    if isinstance(content, str):
        return untagged(content)
    if isinstance(content, list):
        return [
            {**part, "text": untagged(part["text"])}
            if isinstance(part, Mapping) and isinstance(part.get("text"), str)
            else part
            for part in content
        ]
    return content


def this_turns(messages: list[dict[str, Any]], history: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """→ what came after the user's newest message, and whether everything before it is still the history."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    newest = len(history) if len(history) in users else users[-1] if users else len(messages)
    same = newest == len(history) and all(map(_same, messages, stored(history)))
    return messages[newest + 1 :], same


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all((one.get(key) or None) == (other.get(key) or None) for key in _SAME_KEYS)


def usage_of(result: Mapping[str, Any], compressor: Any) -> Usage:
    """Of this turn: one process runs one turn, so the agent's session figures are the turn's."""
    return Usage(
        input_tokens=_count(result.get("input_tokens")) or 0,
        output_tokens=_count(result.get("output_tokens")) or 0,
        estimated_cost=_dollars(result.get("estimated_cost_usd")),
        context_length=_count(getattr(compressor, "context_length", None)),
        threshold_tokens=_count(getattr(compressor, "threshold_tokens", None)),
        last_prompt_tokens=_count(getattr(compressor, "last_prompt_tokens", None)),
    )


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 53:
        return None
    return int(value)


def _dollars(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < float("inf") else 0.0


def failure_of(result: Mapping[str, Any]) -> CannotRun | None:
    """A run that ended badly without raising; None when it did not."""
    if result.get("interrupted"):
        return None
    if not result.get("failed") and not (result.get("error") and not result.get("completed")):
        return None
    text = without_paths(str(result.get("error") or result.get("final_response") or "the agent gave no reason"))
    if result.get("failure_reason") == "rate_limit" or "rate limit" in text.lower() or "429" in text:
        return CannotRun(text, type="rate_limit", hint=RATE_LIMIT_HINT)
    return CannotRun(text, hint="The agent gave up; the turn's stderr and the profile's logs have more.")


def unsaid(answer: str, said: str, newest: str) -> str:
    """What of the final answer has not been streamed. `newest`: what was streamed since the last tool call."""
    answer, newest = answer.strip(), newest.strip()
    if " ".join(answer.split()) in " ".join(said.split()):
        return ""
    if answer.startswith(newest):
        return answer[len(newest) :]
    return f"\n\n{answer}"


def is_visible(text: str, said: Iterable[str]) -> bool:
    """Whether what is reported as reasoning was part of the answer."""
    answer, text = (" ".join(part.split()) for part in ("".join(said), text))
    return not text or text in answer or bool(answer and answer in text)
