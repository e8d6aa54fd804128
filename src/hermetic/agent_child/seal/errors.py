"""The one error of the seal."""

from __future__ import annotations


class SealError(Exception):
    """A mechanism that the policy requires cannot be had: the turn must not run."""

    def __init__(self, mechanism: str, why: str) -> None:
        super().__init__(f"{mechanism}: {why}")
        self.mechanism = mechanism
        """Of launch.MECHANISMS."""
        self.why = why
