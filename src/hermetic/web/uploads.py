"""Files that a user sends into a session's workspace: from the body to the disk, never through memory as a whole.

The body is parsed as it comes (RFC 7578) into an unnamed file beside the server's data, because a form may name its
session after its file. When it is whole and everything about it is right, it is copied into the workspace under a draft
name and renamed. The workspace is hostile: an agent may have put links there, so the folder is opened once, without
following a link, and everything after that happens relative to what was opened; the rename puts the file in the place of
a link, never behind it.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import trio
from quart import Request
from quart_trio.wrappers import TrioRequest
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from hermetic.protocol.errors import ClientError, Conflict, HostError, StorageError, TooLarge, UnsupportedMediaType
from hermetic.supervisor.beneath import open_beneath

PATHS = frozenset({"/api/upload"})
"""Where a body may be larger than server.body_bytes_max."""
FORM_BYTES = 64 << 10
"""For what is not the file: boundaries, headers and fields."""
FIELD_BYTES_MAX = 4 << 10
"""One field; a session's id is 64 characters."""
PARTS_MAX = 16
"""Parts of a form; the web UI sends two."""
PIECE_BYTES = 16 << 10
"""What the parser is given at once; more than FORM_BYTES it would take for a header without an end."""
STALL_S = 30.0
"""Without a byte of the body; then whoever sent it has gone."""
NAME_CHARACTERS = 200


class Upload(NamedTuple):
    """A form with one file, all of it on the disk."""

    fields: dict[str, str]
    filename: str
    """As the client says it."""
    file: IO[bytes]
    size: int


class BoundedRequest(TrioRequest):
    """Bodies of uploads have a bound of their own; Quart knows one for all."""

    upload_bytes_max = 0

    def __init__(self, method: str, scheme: str, path: str, *args: Any, **kwargs: Any) -> None:
        if path in PATHS:
            kwargs["max_content_length"] = self.upload_bytes_max + FORM_BYTES
        super().__init__(method, scheme, path, *args, **kwargs)


def safe_name(filename: str) -> str:
    """The name under which a file is kept: its last part, `[^\\w.\\-]` as `_`, 200 characters.

    Raises `ClientError` for one that is empty or all dots, which would name a folder.
    """
    last = re.split(r"[/\\]", filename)[-1]
    name = re.sub(r"[^\w.\-]", "_", last)[:NAME_CHARACTERS]
    while len(name.encode()) > 255:  # NAME_MAX; a letter may take four bytes
        name = name[:-1]
    if not name.strip("."):
        raise ClientError(
            f"{filename[:80]!r} cannot be a file's name", hint="Give the file a name with a letter in it."
        )
    return name


async def receive(request: Request, folder: Path, *, bytes_max: int) -> Upload:
    """The form in the request's body, with its file in an unnamed file in `folder`; close it.

    Raises `UnsupportedMediaType`, `ClientError` for a form that is broken or has no file, `TooLarge`, `StorageError`.
    """
    kind, options = parse_options_header(request.headers.get("Content-Type"))
    boundary = options.get("boundary", "")
    if kind != "multipart/form-data" or not boundary:
        raise UnsupportedMediaType(
            f"the body is {kind or 'of no type'}, not multipart/form-data with a boundary",
            hint="Send a form with the fields session_id and file.",
        )
    try:
        file = await trio.to_thread.run_sync(lambda: tempfile.TemporaryFile(dir=folder))  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise _storage(error) from error
    try:
        return await _parsed(request, boundary.encode(), file, bytes_max)
    except BaseException:
        file.close()
        raise


async def _parsed(request: Request, boundary: bytes, file: IO[bytes], bytes_max: int) -> Upload:
    decoder = MultipartDecoder(boundary, max_form_memory_size=FORM_BYTES, max_parts=PARTS_MAX)
    fields: dict[str, str] = {}
    filename: str | None = None
    part: Field | File | None = None
    text = b""
    size = total = 0
    async for chunk in _body(request, bytes_max):
        total += len(chunk)
        if total > bytes_max + FORM_BYTES:
            raise _too_large(bytes_max)
        try:
            decoder.receive_data(chunk or None)
            while not isinstance(event := decoder.next_event(), NeedData | Epilogue):
                if isinstance(event, Field | File):
                    part, text = event, b""
                    if isinstance(event, File) and event.name == "file":
                        if filename is not None:
                            raise ClientError("the form has more than one file", hint="Send one file at a time.")
                        filename = event.filename
                elif isinstance(event, Data) and isinstance(part, File) and part.name == "file":
                    size += len(event.data)
                    if size > bytes_max:
                        raise _too_large(bytes_max)
                    await trio.to_thread.run_sync(file.write, event.data)
                elif isinstance(event, Data) and isinstance(part, Field):
                    text += event.data
                    if len(text) > FIELD_BYTES_MAX:
                        raise TooLarge(f"the field {part.name[:40]!r} is longer than {FIELD_BYTES_MAX} bytes")
                    if not event.more_data:
                        fields[part.name] = text.decode("utf-8", "replace")
        except ValueError as error:
            raise ClientError(f"the form is broken: {error}") from error
        except RequestEntityTooLarge as error:
            raise TooLarge("the form has too many parts, or fields that are too long") from error
        except OSError as error:
            raise _storage(error) from error
    if filename is None:
        raise ClientError("the form has no field `file`", hint="Send the file in the field `file`, with its name.")
    return Upload(fields, filename, file, size)


async def _body(request: Request, bytes_max: int) -> AsyncIterator[bytes]:
    """The body's chunks, then an empty one for its end."""
    chunks = aiter(request.body)
    while True:
        chunk = b""
        with trio.move_on_after(STALL_S) as scope, suppress(StopAsyncIteration):
            try:
                chunk = await anext(chunks)
            except RequestEntityTooLarge:
                raise _too_large(bytes_max) from None
        if scope.cancelled_caught:
            raise ClientError(f"the body stalled for {STALL_S:g} s")
        for at in range(0, len(chunk), PIECE_BYTES):
            yield chunk[at : at + PIECE_BYTES]
        if not chunk:
            yield b""
            return


def place(source: IO[bytes], workspace: Path, name: str) -> Path:
    """Copies `source` into the workspace as `name`, in place of a file or a link of that name. Blocks. → its path.

    Raises `ClientError`, `Conflict` where a folder has the name, `StorageError`.
    """
    try:
        folder = open_beneath(Path("/"), workspace)
    except OSError as error:
        raise ClientError(f"the session's workspace cannot be opened: {error.strerror}") from error
    draft = f".upload-{secrets.token_hex(8)}"
    try:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(draft, flags, 0o644, dir_fd=folder), "wb") as target:
            source.seek(0)
            shutil.copyfileobj(source, target, 1 << 20)
        os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        _unlink(draft, folder)
        if error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
            raise Conflict(f"{name} is a folder in this workspace", hint="Give the file another name.") from error
        raise _storage(error) from error
    except BaseException:
        _unlink(draft, folder)
        raise
    finally:
        os.close(folder)
    return workspace / name


def _unlink(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        pass  # it was never made, or the agent was quicker


def _storage(error: OSError) -> HostError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"the file cannot be kept: {error.strerror}")
    return HostError(f"the file cannot be kept: {error.strerror}")


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"the file is larger than server.upload_bytes_max = {bytes_max} bytes")
