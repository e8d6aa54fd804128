"""Hermetic: every chat turn of an LLM agent in its own child process, streamed to any number of readers."""

__version__ = "0.1.0"
