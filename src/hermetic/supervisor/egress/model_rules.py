"""What the model proxy decides, as plain functions over values: which requests go on, which headers, and the key's ways.

The key is worth money and opens other tenants' data at the provider (stored answers, files, batches), so the rule is the
opposite of a usual proxy's: what is not named does not pass, in either direction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from hermetic.protocol.errors import ConfigError

Headers = list[tuple[bytes, bytes]]

PLACEHOLDER: Final = "hermetic-sealed-key"
"""What the child has in place of a key. Not empty and not a word that agents take for a key that was never set."""

DEFAULT_REQUESTS: Final = (
    "POST /chat/completions",
    "POST /completions",
    "POST /embeddings",
    "POST /responses",
    "GET /models",
    "GET /models/*",
    "POST /v1/messages",
    "POST /v1/messages/count_tokens",
    "GET /v1/models",
    "GET /v1/models/*",
)
"""What computes and keeps nothing that another tenant could ask for: no files, batches or stored answers. Clients of
OpenAI's API have `/v1` in the base URL, Anthropic's has it in the path."""

_REQUEST = re.compile(r"(GET|POST) (/[^\s?#%*]*?)(/\*)?")
_PATH = re.compile(r"/[A-Za-z0-9._~:@!$&'()+,=/-]*")
_QUERY = re.compile(r"[!-~]*")
_KEY = re.compile(r"[!-~]+")

_PASSED_UP: Final = frozenset({
    b"accept", b"content-type", b"content-length", b"user-agent",
    b"anthropic-version", b"anthropic-beta", b"openai-beta", b"idempotency-key", b"x-title", b"http-referer",
})  # fmt: skip
"""Of a request. Not the names of an organisation or a project: whom the key is billed to is the host's affair. Nothing
that moves a path or a method elsewhere (`X-Original-URL`, `X-HTTP-Method-Override`)."""
_PASSED_UP_PREFIXES: Final = (b"x-stainless-",)
_PASSED_DOWN: Final = frozenset({
    b"content-type", b"content-length", b"cache-control", b"date", b"retry-after", b"retry-after-ms",
    b"x-should-retry", b"x-request-id", b"request-id", b"openai-processing-ms", b"openai-version", b"openai-model",
})  # fmt: skip
"""Of a response. No cookies, no names of the host's account."""
_PASSED_DOWN_PREFIXES: Final = (b"x-ratelimit-", b"anthropic-ratelimit-")


class Key:
    """A secret that does not show itself: not in a traceback, not in a log."""

    __slots__ = ("value",)

    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Key(...)"


class Provider(Struct, frozen=True, kw_only=True):
    """A model provider as one agent's turns may use it."""

    origin: str
    """`https://api.openai.com`; a port where it is not the scheme's own."""
    base_path: str
    """`/v1`, or empty."""
    host: str
    port: int
    requests: tuple[tuple[str, str, bool], ...]
    """Method, whole path, and whether everything below it goes too."""
    key_header: str = "authorization"
    key: Key | None = None

    def allows(self, method: str, path: str) -> bool:
        """`path` as it stands in the request, without its query. No encoded or empty or dotted segment ever passes: what
        is compared here must be what the provider sees."""
        if not _PATH.fullmatch(path) or any(part in ("", ".", "..") for part in path.split("/")[1:]):
            return False
        return any(
            method == m and (path.startswith(f"{whole}/") if below else path == whole)
            for m, whole, below in self.requests
        )

    def request_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """Of the child's request → of ours. The answer must come uncompressed: the key is searched for in it."""
        passed = [(n, v) for n, v in headers if n in _PASSED_UP or n.startswith(_PASSED_UP_PREFIXES)]
        passed.append((b"accept-encoding", b"identity"))
        if self.key:
            value = f"Bearer {self.key.value}" if self.key_header == "authorization" else self.key.value
            passed.append((self.key_header.encode(), value.encode()))
        return passed

    def response_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """Of the provider's response → of ours."""
        secret = self.key.value.encode() if self.key else None
        return [
            (name, value)
            for name, value in ((name.lower(), value) for name, value in headers)
            if (name in _PASSED_DOWN or name.startswith(_PASSED_DOWN_PREFIXES)) and not (secret and secret in value)
        ]

    def redactor(self) -> Redactor:
        return Redactor(self.key.value.encode() if self.key else b"")


class Redactor:
    """Puts stars in the place of the key in a stream of bytes, length for length.

    A provider that repeats what it was sent (a debugging gateway, an error) would hand the key to the child. Only bytes
    that may be the beginning of the key are held back, until the next ones say.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        if not self._secret:
            return data
        data = (self._held + data).replace(self._secret, b"*" * len(self._secret))
        keep = next(
            (n for n in range(min(len(self._secret) - 1, len(data)), 0, -1) if data.endswith(self._secret[:n])), 0
        )
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]

    def end(self) -> bytes:
        held, self._held = self._held, b""
        return held


def is_query(text: str) -> bool:
    return _QUERY.fullmatch(text) is not None and "#" not in text


# --- from the configuration ---------------------------------------------------------------------------------------


def parse_provider(
    url: str, requests: Iterable[str] = DEFAULT_REQUESTS, key_header: str = "authorization", key: Key | None = None
) -> Provider:
    """Raises `ConfigError`; no message has the key in it."""
    hint = "Write https://HOST/PATH; http:// only for a model server on this machine: http://127.0.0.1:PORT/v1."
    fault = ConfigError("url is not the base URL of a model provider", hint=hint)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise fault from None
    base_path = parts.path.rstrip("/")
    clean = url.isascii() and url.isprintable() and not (parts.query or parts.fragment or "@" in parts.netloc)
    if not clean or not host or parts.scheme not in ("http", "https") or port == 0 or "//" in base_path:
        raise fault
    if base_path and (not _PATH.fullmatch(base_path) or any(p in (".", "..") for p in base_path.split("/"))):
        raise fault
    if parts.scheme == "http" and host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigError("url would send the key and the conversation unencrypted to another machine", hint=hint)
    if not re.fullmatch(r"[a-z0-9-]+", key_header) or key_header in ("host", "content-length", "transfer-encoding"):
        raise ConfigError(
            "key_header is not the name of a header", hint='Write "authorization" or "x-api-key", in lower case.'
        )
    bracketed = f"[{host}]" if ":" in host else host
    return Provider(
        origin=f"{parts.scheme}://{bracketed}{'' if port is None else f':{port}'}",
        base_path=base_path,
        host=host,
        port=port or (443 if parts.scheme == "https" else 80),
        requests=tuple(_requests(requests, base_path)),
        key_header=key_header,
        key=key,
    )


def _requests(entries: Iterable[str], base_path: str) -> Iterable[tuple[str, str, bool]]:
    for entry in entries:
        match = _REQUEST.fullmatch(entry)
        if not match or not match[2] or "//" in match[2] or (match[2] == "/" and match[3]):
            raise ConfigError(
                f'"{entry}" is not METHOD /path or METHOD /path/*',
                hint='Write what follows the url: "POST /chat/completions", "GET /models/*". Methods are GET and POST.',
            )
        yield match[1], base_path + match[2], bool(match[3])


def read_key(key_env: str | None, server_environ: Mapping[str, str]) -> Key | None:
    """The key from the server's environment; None when none is configured. Raises `ConfigError`, without the value."""
    if key_env is None:
        return None
    value = server_environ.get(key_env, "").strip()
    if not value:
        raise ConfigError(
            f"model_api.key_env names {key_env}, which the server's environment does not have",
            hint=f"Start the server with {key_env} set.",
        )
    if not _KEY.fullmatch(value):
        raise ConfigError(f"the value of {key_env} cannot be sent in a header", hint="Look for a space or a line end.")
    return Key(value)
