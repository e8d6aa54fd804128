"""What the adapter decides, as values: no agent, no process."""

from __future__ import annotations

import pytest

from hermetic.agent_child.adapters import hermes_rules as rules
from hermetic.agent_child.adapters.hermes_rules import ModelChoice
from hermetic.protocol.events import Usage

CUSTOM = {"default": "house-model", "provider": "custom", "base_url": "http://127.0.0.1:9/v1"}
OPENROUTER = {"default": "openai/gpt", "provider": "openrouter", "base_url": "https://openrouter.ai/api/v1"}
ANTHROPIC = {"default": "claude", "provider": "anthropic", "base_url": "https://api.anthropic.com"}


@pytest.mark.parametrize(
    ("wanted", "configured", "choice"),
    [
        # the profile's own
        (None, CUSTOM, ModelChoice("house-model", "custom", CUSTOM["base_url"])),
        ("  ", CUSTOM, ModelChoice("house-model", "custom", CUSTOM["base_url"])),
        (None, "just-a-name", ModelChoice("just-a-name")),
        (None, None, ModelChoice("")),
        ("other", CUSTOM, ModelChoice("other", "custom", CUSTOM["base_url"])),
        # @provider:model names the provider
        ("@openai:gpt", CUSTOM, ModelChoice("gpt", "openai", None)),
        ("@custom:qwen:7b", CUSTOM, ModelChoice("qwen:7b", "custom", CUSTOM["base_url"])),
        ("@openrouter:a/b", ANTHROPIC, ModelChoice("a/b", "openrouter", None)),
        # with openrouter the id stays whole
        ("anthropic/claude", OPENROUTER, ModelChoice("anthropic/claude", "openrouter", OPENROUTER["base_url"])),
        ("openrouter/auto", OPENROUTER, ModelChoice("openrouter/auto", "openrouter", OPENROUTER["base_url"])),
        # a prefix that is the provider is taken off
        ("anthropic/claude", ANTHROPIC, ModelChoice("claude", "anthropic", ANTHROPIC["base_url"])),
        # another vendor's goes to openrouter, without the base URL
        ("openai/gpt", ANTHROPIC, ModelChoice("openai/gpt", "openrouter", None)),
        ("openai/gpt", CUSTOM, ModelChoice("openai/gpt", "openrouter", None)),
        # a prefix that nobody knows is part of the name
        ("my-lab/model", CUSTOM, ModelChoice("my-lab/model", "custom", CUSTOM["base_url"])),
    ],
)
def test_the_model_and_who_serves_it(wanted: str | None, configured: object, choice: ModelChoice) -> None:
    assert rules.resolve_model(wanted, configured) == choice


def test_toolsets_are_the_profiles_when_it_names_some() -> None:
    assert rules.toolsets({"platform_toolsets": {"cli": ["file", 7]}}) == ["file", "7"]
    for section in (None, ["file"], "file", {}, {"cli": None}, {"cli": "file"}, {"cli": []}, {"web": ["file"]}):
        assert rules.toolsets({"platform_toolsets": section}) == list(rules.DEFAULT_TOOLSETS)


def test_the_fallback_model_needs_a_model() -> None:
    full = {"model": "m", "provider": "p", "base_url": "u"}
    assert rules.fallback_model({"fallback_model": {**full, "key": "not ours"}}) == full
    assert rules.fallback_model({"fallback_model": {"model": "m"}}) == {
        "model": "m",
        "provider": None,
        "base_url": None,
    }
    for section in (None, "m", {}, {"provider": "p"}, {"model": " "}):
        assert rules.fallback_model({"fallback_model": section}) is None


@pytest.mark.parametrize(
    ("value", "prompt"),
    [
        ("Be brief.", "Be brief."),
        ({"system_prompt": "Be brief."}, "Be brief."),
        ({"prompt": "Be brief."}, "Be brief."),
        ({"system_prompt": "One.", "prompt": "Two."}, "One."),
        ({"system_prompt": "Be brief.", "tone": "dry", "style": "terse"}, "Be brief.\nTone: dry\nStyle: terse"),
        ({"tone": "dry"}, "Tone: dry"),
        ({}, ""),
    ],
)
def test_a_personality_is_text_or_a_mapping(value: object, prompt: str) -> None:
    assert rules.personality_prompt({"agent": {"personalities": {"it": value}}}, "it") == prompt


def test_no_personality_and_an_unknown_one() -> None:
    assert rules.personality_prompt({}, None) is None
    assert rules.personality_prompt({}, "") is None
    for config in ({}, {"agent": None}, {"agent": {"personalities": []}}, {"agent": {"personalities": {"a": "b"}}}):
        with pytest.raises(KeyError):
            rules.personality_prompt(config, "pirate")


def test_only_what_a_signature_shows_is_passed() -> None:
    def old(model, session_id=None): ...
    def new(model, **rest): ...

    given = {"model": "m", "session_id": "s", "event_callback": print}
    assert rules.accepted(old, given) == {"model": "m", "session_id": "s"}
    assert rules.accepted(new, given) == given


def test_the_tag_comes_off_as_it_went_on() -> None:
    for message in ("hello", "", "[Workspace: /not/ours] said I", "two\nlines"):
        assert rules.untagged(rules.tagged(message, "/a/b c")) == message
    assert rules.untagged("look at [Workspace: /a]") == "look at [Workspace: /a]"


def test_what_is_stored_has_no_tag_and_nothing_that_json_has_not() -> None:
    rows = [
        {"role": "user", "content": "[Workspace: /w]\nhello", "_private": 1},
        {"role": "user", "content": [{"type": "text", "text": "[Workspace: /w]\nhello"}, {"type": "image_url"}]},
        {"role": "assistant", "tool_calls": [{"id": "1", "when": rules}], "reasoning": "hm"},
        {"role": ""}, "no message", None,
    ]  # fmt: skip
    assert rules.stored(rows) == [
        {"role": "user", "content": "hello"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "image_url"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "when": str(rules)}], "reasoning": "hm"},
    ]
    assert rules.stored(None) == []


def test_this_turns_messages_and_whether_the_past_is_as_it_was() -> None:
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    asked, answer = {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}
    nudge = {"role": "user", "content": "go on"}
    assert rules.this_turns([*history, asked, answer], history) == ([answer], True)
    assert rules.this_turns([*history, asked, answer, nudge, answer], history) == ([answer, nudge, answer], True)
    compressed = [{"role": "user", "content": "summary of a and b"}, asked, answer]
    assert rules.this_turns(compressed, history) == ([answer], False)
    other = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "changed"}]
    assert rules.this_turns([*other, asked, answer], history) == ([answer], False)
    assert rules.this_turns([], [])[0] == []


def test_arguments_are_the_first_four_cut_to_120_characters() -> None:
    args = {"a": "x" * 121, "b": 2, "c": None, "d": [1], "e": "no"}
    assert rules.shown_args(args) == {"a": "x" * 120 + "...", "b": "2", "c": "None", "d": "[1]"}
    assert rules.shown_args({"a": "x" * 120}) == {"a": "x" * 120}
    assert rules.shown_args("not a mapping") == {}


def test_a_snippet_is_the_output_of_a_result() -> None:
    assert rules.snippet('{"output": "out", "error": "err"}') == "out"
    assert rules.snippet('{"result": [1]}') == "[1]"
    assert rules.snippet('{"output": "", "error": "err"}') == "err"
    assert rules.snippet('{"other": 1}') == '{"other": 1}'
    assert rules.snippet("y" * 201) == "y" * 200
    assert rules.snippet(None) == ""


def test_choices_follow_what_the_agent_allows() -> None:
    assert rules.offered({}) == ["once", "session", "always", "deny"]
    assert rules.offered({"allow_permanent": False}) == ["once", "session", "deny"]
    assert rules.offered({"allow_permanent": False, "smart_denied": True}) == ["once", "deny"]


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        ({"failed": True, "failure_reason": "rate_limit", "error": "no"}, "rate_limit"),
        ({"failed": True, "error": "Rate Limit reached"}, "rate_limit"),
        ({"failed": True, "error": "HTTP 429"}, "rate_limit"),
        ({"failed": True, "error": "HTTP 400"}, "error"),
        ({"failed": True}, "error"),
        ({"error": "cut", "completed": False}, "error"),
    ],
)
def test_a_failure_that_does_not_raise(result: dict, kind: str) -> None:
    failure = rules.failure_of(result)
    assert failure is not None
    assert failure.failed.type == kind
    assert failure.failed.hint


def test_what_is_no_failure() -> None:
    assert rules.failure_of({"completed": True}) is None
    assert rules.failure_of({"completed": True, "error": "overcome"}) is None
    assert rules.failure_of({"failed": True, "interrupted": True}) is None


def test_a_failure_names_no_folder_of_the_host() -> None:
    failure = rules.failure_of({"failed": True, "error": "cannot read /home/ann/.hermes/auth.json"})
    assert "/home" not in str(failure)


def test_usage_survives_what_is_no_number() -> None:
    class Compressor:
        context_length = 1000
        threshold_tokens = 500.9
        last_prompt_tokens = -1

    result = {"input_tokens": 3, "output_tokens": None, "estimated_cost_usd": float("nan")}
    assert rules.usage_of(result, Compressor()) == Usage(input_tokens=3, context_length=1000, threshold_tokens=500)
    assert rules.usage_of({"estimated_cost_usd": 0.25}, None) == Usage(estimated_cost=0.25)


def test_what_was_said_is_no_reasoning() -> None:
    assert rules.is_visible("Hello there", ["Hello ", "there", ", friend"])
    assert rules.is_visible("thought and\nHello", ["Hello"])
    assert rules.is_visible("  ", [])
    assert not rules.is_visible("I should greet", ["Hello"])


def test_of_an_answer_what_was_not_streamed_is_said() -> None:
    assert rules.unsaid("The end.", "First. The end.", "The end.") == ""
    assert rules.unsaid("The end.", "\n\nThe  end.", "\n\nThe  end.") == "", "white space is no difference"
    assert rules.unsaid("The end.", "First. The", "The") == " end."
    assert rules.unsaid("The end.", "First.", "") == "The end."
    assert rules.unsaid("The end.", "First.", "First.") == "\n\nThe end."
    assert rules.unsaid("", "First.", "First.") == ""
