"""Tenants' secrets, sealed: AES-256-GCM under a key that the database does not have.

What is sealed is bound to its place: tenant, profile and name are authenticated with it, so a row that somebody copies to
another tenant does not open there. The first key of a ring seals, all of them open, and a box names its key, so keys
change in three steps: put a new one in front, `hermetic secrets rotate`, take the old one out.

A box: a version (1), 8 bytes that name the key, a nonce of 12 random bytes, and what AES-GCM makes. With random nonces a
key is good for 2**32 boxes (NIST SP 800-38D, 8.3): more secrets than anybody sets.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hermetic.protocol.errors import ClientError, ConfigError, HostError
from hermetic.supervisor.config import Secrets, variable_fault
from hermetic.supervisor.environment import BASE, COPIED, OURS
from hermetic.supervisor.redact import repeats_itself

KEY_BYTES: Final = 32
VALUE_BYTES_MIN: Final = 8
"""Shorter ones could not be told from ordinary text, so they could not be kept out of the journal; nor are they secrets."""
VALUE_BYTES_MAX: Final = 16 << 10
"""A certificate chain with its key takes some kilobytes."""
COUNT_MAX: Final = 64
"""Of one profile of a tenant. Each costs every event of its turns some microseconds of looking for it."""
_VERSION: Final = b"\x01"
_ID_BYTES: Final = 8
_NONCE_BYTES: Final = 12
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_REFUSED: Final = re.compile(r"(?:LD|PYTHON|HERMETIC)_?.*|PATH|HOME|IFS|ENV|BASH_ENV", re.DOTALL)
"""They would run code in a child before it has claimed its streams, or are not a tenant's to say."""


class KeyRing:
    """`keys`: the first seals, all open."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = {_id_of(key): AESGCM(key) for key in keys}
        self._first = _id_of(keys[0])

    def seal(self, value: str, *place: str) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + self._first + nonce + self._keys[self._first].encrypt(nonce, value.encode(), _bound(place))

    def open(self, box: bytes, *place: str) -> str:
        """Raises `HostError` when no key of the ring opens it, or it is not what was sealed for this place."""
        key_id, nonce = box[1 : 1 + _ID_BYTES], box[1 + _ID_BYTES : 1 + _ID_BYTES + _NONCE_BYTES]
        key = self._keys.get(key_id)
        if box[:1] != _VERSION or key is None:
            raise HostError(
                f"the secret {place[-1]} was encrypted with a key that this server does not have",
                hint="Put that key back behind the first one in secrets.key_file, or set the secret again.",
            )
        try:
            return key.decrypt(nonce, box[1 + _ID_BYTES + _NONCE_BYTES :], _bound(place)).decode()
        except (InvalidTag, ValueError):
            raise HostError(
                f"the secret {place[-1]} in the database is not the one that was put there",
                hint="Set it again, and find out who can write the database.",
            ) from None


def _bound(place: Sequence[str]) -> bytes:
    """As JSON, so that no two places are one."""
    return json.dumps(place).encode()


def _id_of(key: bytes) -> bytes:
    return hashlib.sha256(b"hermetic secrets key\0" + key).digest()[:_ID_BYTES]


def new_key() -> str:
    return base64.urlsafe_b64encode(os.urandom(KEY_BYTES)).decode()


def load_keys(secrets: Secrets, server_environ: Mapping[str, str]) -> KeyRing | None:
    """None: there is no key, so there can be no secrets. Raises `ConfigError`, never with a key in it."""
    if secrets.key_file is not None:
        keys = _parse(_read(Path(secrets.key_file)), f"secrets.key_file: {secrets.key_file}")
    elif text := server_environ.get(secrets.key_env):
        keys = _parse(text, f"the variable {secrets.key_env}")
    else:
        return None
    return KeyRing(keys)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(1 << 16).decode("ascii", "replace")
    except OSError as error:
        raise ConfigError(
            f"secrets.key_file: {path} cannot be read: {error.strerror}",
            hint="Make one: hermetic secrets new-key > FILE; chmod 600 FILE.",
        ) from None
    if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"secrets.key_file: others may read {path}", hint=f"chmod 600 {path}")
    return text


def _parse(text: str, where: str) -> list[bytes]:
    keys = []
    for number, line in enumerate(re.split(r"[\n,]", text), start=1):
        if not (line := line.strip()) or line.startswith("#"):
            continue
        try:
            key = base64.b64decode(line, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise ConfigError(
                f"{where}: line {number} is not {KEY_BYTES} bytes in base64",
                hint="hermetic secrets new-key prints one.",
            )
        keys.append(key)
    if not keys:
        raise ConfigError(f"{where}: there is no key in it", hint="hermetic secrets new-key prints one.")
    return keys


def check_secret(name: str, value: str) -> None:
    """Raises `ClientError` for what cannot be a variable's name, or is not a tenant's to set, and for a value that cannot
    be kept or kept out of the journal. No message has the value in it."""
    if not _NAME.fullmatch(name) or _REFUSED.fullmatch(name) or name in (*BASE, *COPIED, *OURS):
        raise ClientError(
            f"{name[:80]!r} cannot be a secret's name",
            hint="A variable of letters, digits and _ that neither Hermetic nor the system uses itself.",
        )
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ClientError(f"the value of {name} is not text") from None
    if not VALUE_BYTES_MIN <= size <= VALUE_BYTES_MAX:
        raise ClientError(
            f"the value of {name} has {size} bytes; a secret has {VALUE_BYTES_MIN} to {VALUE_BYTES_MAX}",
            hint="What is shorter cannot be told from ordinary text and so not be kept out of what an agent says.",
        )
    if fault := variable_fault(name, value):
        raise ClientError(fault)
    if repeats_itself(value):
        raise ClientError(f"the value of {name} repeats itself", hint="A secret that is worth keeping does not.")
