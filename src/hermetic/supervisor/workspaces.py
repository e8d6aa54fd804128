"""What a request may name: a workspace, attachments in it, a message.

A workspace is decided on its real path, after every symbolic link, and allowed before it is looked for: an answer tells
nobody what exists outside of the roots. The decision holds for the moment it is made: who uses the folder afterwards
opens it without following a link (`open_beneath`), or mounts it, as the seal does.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hermetic.protocol.errors import ClientError, EmptyMessage, TooLarge, UnknownWorkspace, WorkspaceNotAllowed
from hermetic.supervisor.beneath import make_beneath, open_beneath

PATH_BYTES_MAX = 4095
"""PATH_MAX of Linux without its NUL; a longer path can never be opened."""
NAME_BYTES_MAX = 255
"""NAME_MAX of Linux's file systems."""
ATTACHMENTS_MAX = 20
"""As in the Hermes Web UI; more belong in a folder that the message names."""
SYSTEM_FOLDERS = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr"),
    *("/var/lib", "/var/log", "/var/run", "/var/spool", "/root/.ssh"),
)
"""What nobody means when they name a workspace, as long as the roots are as wide as `/`. Not a wall: the seal is."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ECHO_CHARACTERS = 200
"""Of what was asked, in an error: enough to recognise it."""


def resolve_workspace(
    asked: str | None,
    *,
    session_id: str,
    roots: Iterable[str | Path],
    data_dir: str | Path,
    own_dir: str | Path | None = None,
) -> Path:
    """The folder in which the session's agent works: real, absolute, there.

    None: `<own_dir>/<session_id>`, or `<data_dir>/workspaces/<session_id>`, which is made (mode 0700) when it is not there. Else the folder that was
    asked for, when it is the session's own or is inside one of `roots`; never one that holds the server's data, and
    never the system's folders or one in the server's data, unless a root that lies there says so. Blocks on the file
    system.
    Raises `UnknownWorkspace` and `WorkspaceNotAllowed`; of the host's paths they name only the one that was asked for.
    """
    data = Path(os.path.realpath(data_dir))
    own = (data / "workspaces" if own_dir is None else data / Path(own_dir).relative_to(data_dir)) / session_id
    if not _is_plain(session_id):
        raise UnknownWorkspace("the session's id cannot name a folder")
    if asked is None or asked == str(own):  # before links are followed: one may have taken its place
        return _made(own, data)
    path = _real(asked)
    if path == own:
        return _made(own, data)
    if not (containing := _allowed(path, [Path(os.path.realpath(Path(root).expanduser())) for root in roots], data)):
        raise WorkspaceNotAllowed(f"the workspace {_echo(asked)} is outside of the folders that this server allows")
    try:
        os.close(open_beneath(containing[0], path))
    except OSError:  # nothing there, no folder, one on the way that may not be entered, or a link since we looked
        raise UnknownWorkspace(f"there is no folder {_echo(asked)}") from None
    return path


def _allowed(path: Path, roots: list[Path], data: Path) -> list[Path]:
    """Those of the roots that allow it."""
    containing = [root for root in roots if path.is_relative_to(root)]
    if data.is_relative_to(path):
        return []
    if path.is_relative_to(data):
        containing = [root for root in containing if root.is_relative_to(data) and root != data]
    for folder in SYSTEM_FOLDERS:
        if path.is_relative_to(folder):
            containing = [root for root in containing if root.is_relative_to(folder)]
    return containing


def _made(own: Path, data: Path) -> Path:
    """Without following a link that somebody put in its place, or above it."""
    if own.is_symlink():
        raise WorkspaceNotAllowed("the session's own workspace was replaced by a link")
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        make_beneath(data, own)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise UnknownWorkspace("the session's own workspace is not a folder any more") from None
    return own


def _real(asked: str) -> Path:
    if not asked or "\0" in asked:
        raise UnknownWorkspace("a workspace must not be empty or have a NUL")
    # Only the server's own user: `~name` would tell which users there are.
    expanded = os.path.expanduser(asked) if asked == "~" or asked.startswith("~/") else asked
    if not os.path.isabs(expanded):
        raise UnknownWorkspace(f"the workspace {_echo(asked)} is not an absolute path")
    try:
        encoded = os.fsencode(expanded)
        if len(encoded) > PATH_BYTES_MAX or any(len(name) > NAME_BYTES_MAX for name in encoded.split(b"/")):
            raise UnknownWorkspace(f"the workspace {_echo(asked)} has a name longer than a file system allows")
        return Path(os.path.realpath(expanded))
    except (OSError, UnicodeEncodeError):
        raise UnknownWorkspace(f"the workspace {_echo(asked)} cannot be a path") from None


def _echo(asked: str) -> str:
    return repr(asked if len(asked) <= _ECHO_CHARACTERS else f"{asked[:_ECHO_CHARACTERS]}…")


def check_attachments(attachments: Sequence[str]) -> list[str]:
    """Names of files in the workspace, each relative and without `..`; whether they are there is not looked at.

    Raises `ClientError`, and `TooLarge` for more than 20.
    """
    if len(attachments) > ATTACHMENTS_MAX:
        raise TooLarge(
            f"{len(attachments)} attachments; {ATTACHMENTS_MAX} at most",
            hint="Put the files into one folder of the workspace and name it in the message.",
        )
    for name in attachments:
        if not all(_is_plain(part) for part in name.split("/")) or _too_long(name):
            raise ClientError(
                f"the attachment {_echo(name)} is not the name of a file in the workspace",
                hint='Send names relative to the workspace, like "notes.txt" or "images/plan.png", without "..".',
            )
    return list(attachments)


def _is_plain(part: str) -> bool:
    """One part of a path that names itself, on one line: a line break would forge what follows a message."""
    return part not in ("", ".", "..") and "/" not in part and not _CONTROL.search(part)


def _too_long(name: str) -> bool:
    encoded = name.encode()
    return len(encoded) > PATH_BYTES_MAX or any(len(part) > NAME_BYTES_MAX for part in encoded.split(b"/"))


def check_message(text: str, bytes_max: int) -> str:
    """The message without white space around it. Raises `EmptyMessage`, `TooLarge`, `ClientError` for lone surrogates."""
    stripped = text.strip()
    if not stripped:
        raise EmptyMessage("the message is empty")
    try:
        size = len(stripped.encode())
    except UnicodeEncodeError as error:
        raise ClientError(f"the message is not text: half a surrogate pair at character {error.start}") from None
    if size > bytes_max:
        raise TooLarge(
            f"the message has {size} bytes; limits.message_bytes_max is {bytes_max}",
            hint="Put long text into a file in the workspace, or ask the host to raise limits.message_bytes_max.",
        )
    return stripped
