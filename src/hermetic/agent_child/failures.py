"""Exceptions → `Failed`: whose fault, in words that a reader may see."""

from __future__ import annotations

import re

from hermetic.protocol.events import Failed

RATE_LIMIT_HINT = "The model's provider refuses more for now: wait a minute and send it again, or pick another model."
_PATHS = re.compile(r"""\w+://\S+|(?<![\w./~])(?:/[^/\s:'"]+)+/([^/\s:'",;)]+)""")


class CannotRun(Exception):
    """An adapter raises it to end the turn with exactly these words. Its cause, if any, goes to stderr."""

    def __init__(self, message: str, *, hint: str = "", fault: str = "agent", type: str = "error") -> None:
        super().__init__(message)
        self.failed = Failed(message=message, hint=hint, fault=fault, type=type)


def failed_by(error: BaseException) -> Failed:
    """SEED's rule for `rate_limit`; everything else is `error`."""
    if isinstance(error, CannotRun):
        return error.failed
    text = without_paths(str(error))
    name = type(error).__name__
    if "rate limit" in text.lower() or "429" in text or "RateLimitError" in name:
        return Failed(message=f"{name}: {text}", type="rate_limit", hint=RATE_LIMIT_HINT)
    if isinstance(error, SystemExit):
        message = f"the agent's code called sys.exit({text}) instead of returning"
        return Failed(message=message, hint="Return from the function to end a turn, or raise to fail it.")
    return Failed(
        message=f"{name}: {text}" if text else name,
        hint="The agent's own code raised this; the turn's stderr has the traceback.",
    )


def without_paths(text: str) -> str:
    """`/home/me/project/a.txt` → `a.txt`: a reader need not know where things lie on the host. URLs stay."""
    return _PATHS.sub(lambda match: match[0] if match[1] is None else match[1], text)
