"""What the server writes to stderr: one event a line, for people or for programs.

No traceback has the values of variables in it, in neither form: structlog shows them by default, and a turn's environment
is among them.
"""

from __future__ import annotations

import sys
from typing import Final

import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import Processor

from hermetic.supervisor.config import Log

TRACEBACK_FRAMES: Final = 50
"""Of an exception in JSON; trio's groups nest deep."""


def log_to_stderr(log: Log) -> None:
    """stdout belongs to what a command answers."""
    last: list[Processor]
    if log.format == "json":
        transform = ExceptionDictTransformer(show_locals=False, max_frames=TRACEBACK_FRAMES)
        last = [structlog.processors.ExceptionRenderer(transform), structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(log.level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
