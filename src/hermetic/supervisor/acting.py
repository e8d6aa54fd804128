"""Who acts, for the audit log: set once where a request comes in, and known wherever something is done for it.

A context variable, because what is done lies many calls below who asks for it; a task that is started to finish a
request's work inherits it. Without a request it is the server itself that acts.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from hermetic.supervisor.audit import Act
from hermetic.supervisor.identity import Caller

SYSTEM: Final = ("", "system")
_actor: ContextVar[tuple[str, str]] = ContextVar("actor", default=SYSTEM)
"""The tenant that is acted for, and who acts."""


def act_for(caller: Caller) -> None:
    """From now on, in this task and those that it starts."""
    _actor.set((caller.tenant, actor_of(caller)))


def actor_of(caller: Caller) -> str:
    names = ([f"key:{caller.key_id}"] if caller.key_id else []) + ([f"user:{caller.user}"] if caller.user else [])
    return " ".join(names) or ("operator" if caller.tenant else "unknown")


def act(action: str, target: str = "", *, tenant: str | None = None, **detail: str | int | bool | None) -> Act:
    """What is done now. `tenant`: whose it is, where that is not the caller's."""
    own, actor = _actor.get()
    return Act(action=action, actor=actor, tenant=own if tenant is None else tenant, target=target, detail=detail)
