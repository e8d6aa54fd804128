"""Tokens of an identity provider (OpenID Connect Core 1.0): whose they are, checked with the provider's own keys.

Only asymmetric signatures are taken: whoever can check a token must not be able to make one. The provider's keys are
fetched when the first token comes and kept for an hour; a token of a key that is not among them has them fetched again,
but not more often than every half minute, so that made-up tokens cannot make this server hammer its provider.

For browsers: the authorization code flow with PKCE (RFC 7636). The id token that comes back is checked the same way.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from base64 import urlsafe_b64encode
from typing import Any, Final
from urllib.parse import urlencode

import httpx2
import msgspec
import structlog
import trio
from joserfc import jwk, jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from msgspec import Struct

from hermetic.protocol.errors import ConfigError, HostError, Unauthorized
from hermetic.supervisor.config import Oidc
from hermetic.supervisor.identity import SCOPES, Caller, is_user_name, same, scopes_of

log = structlog.get_logger()

ALGORITHMS: Final = [
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
    "Ed25519",
]
KINDS: Final = ("RSA", "EC", "OKP")
FETCH_S = 10.0
"""For one answer of the provider; a request waits for it at most once an hour."""
ANSWER_BYTES_MAX = 256 << 10
"""A key set of a hundred RSA keys is about 60 kB."""
KEYS_S = 3600.0
"""How long keys are believed: one that the provider has withdrawn opens nothing after this time."""
STALE_S = 4 * 3600.0
"""How long they are believed while the provider does not answer."""
AGAIN_S = 30.0
"""Between two fetches for keys that are not there, or for a provider that does not answer."""
LEEWAY_S = 60
"""Between two clocks."""
TOKEN_BYTES_MAX = 16 << 10
"""A token with some hundred groups in it is about 8 kB."""
FLOW_S = 600.0
"""For a person to log in at the provider."""
FLOWS_MAX = 1000
"""People who are logging in at once; the oldest gives way."""


class Flow(Struct, frozen=True):
    """One browser on its way to the provider and back."""

    state: str
    nonce: str
    verifier: str
    redirect_uri: str
    until: float


class ProviderError(HostError):
    code = "identity_provider"
    status = 503
    default_hint = "The identity provider does not answer as it should; use a key, or try again later."


class Provider:
    """The one that the configuration names. Raises `Unauthorized` and `ProviderError`."""

    flow_s: Final = FLOW_S

    def __init__(self, config: Oidc) -> None:
        assert config.issuer
        self._config = config
        self._issuer = config.issuer
        self._client_secret = _secret(config.client_secret_env)
        self._keys: jwk.KeySet | None = None
        self._fetched_at = -STALE_S
        self._tried_at = -AGAIN_S
        self._fetching = trio.Lock()
        self._about: dict[str, Any] | None = None
        self._flows: dict[str, Flow] = {}

    # --- tokens ----------------------------------------------------------------------------------------------------

    async def caller(self, token: str) -> Caller:
        """Who an access token stands for."""
        if self._config.audience is None:
            raise Unauthorized("this server takes no tokens: its configuration names no audience")
        return self._caller(await self._claims(token, self._config.audience))

    async def _claims(self, token: str, audience: str) -> dict[str, Any]:
        if len(token) > TOKEN_BYTES_MAX:
            raise Unauthorized("this token is too long")
        keys = await self._key_set()
        for last in (False, True):
            try:
                claims = jwt.decode(token, keys, algorithms=ALGORITHMS).claims
                _check(claims, self._issuer, audience)
                return claims
            except InvalidKeyIdError:
                if last:
                    break
                keys = await self._key_set(newer=True)
            except JoseError as error:
                raise Unauthorized(f"this token is not good here: {error.error}") from None
            except (ValueError, TypeError, KeyError, RecursionError):
                raise Unauthorized("this is not a token") from None
        raise Unauthorized("this token is signed with a key that its issuer does not have")

    def _caller(self, claims: dict[str, Any]) -> Caller:
        config = self._config
        tenant, user = claims.get(config.tenant_claim), claims.get("sub")
        if not isinstance(tenant, str) or not tenant:
            raise Unauthorized(f"this token names no tenant in its claim {config.tenant_claim!r}")
        if not isinstance(user, str) or not is_user_name(user):
            raise Unauthorized("this token names nobody in its claim 'sub'")
        said = claims.get(config.scopes_claim, [])
        words = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
        prefix = config.scopes_prefix
        named = [scope for scope in SCOPES if f"{prefix}{scope}" in words]
        return Caller(tenant=tenant, user=user, scopes=scopes_of(named or config.scopes))

    # --- the provider's keys ---------------------------------------------------------------------------------------

    async def _key_set(self, *, newer: bool = False) -> jwk.KeySet:
        """`newer`: there must be one that we do not have."""
        async with self._fetching:  # one fetch, whoever waits
            now = time.monotonic()
            if self._keys is not None and now - self._fetched_at < KEYS_S and not newer:
                return self._keys
            if now - self._tried_at >= AGAIN_S:
                self._tried_at = now
                try:
                    self._keys = _imported(await self._get(await self._jwks_url()))
                    self._fetched_at = now
                except ProviderError as error:
                    log.warning("identity_provider_failed", detail=error.message)
            if self._keys is None or now - self._fetched_at >= STALE_S:
                raise ProviderError("the identity provider's keys cannot be had")
            return self._keys

    async def _jwks_url(self) -> str:
        return self._config.jwks_url or await self._endpoint("jwks_uri")

    async def _endpoint(self, name: str) -> str:
        if self._about is None:
            about = await self._get(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
            if about.get("issuer") != self._issuer:  # OpenID Connect Discovery 1.0, 4.3
                raise ProviderError("the identity provider's own document names another issuer")
            self._about = about
        url = self._about.get(name)
        if not isinstance(url, str) or not url.startswith(("https://", "http://")):
            raise ProviderError(f"the identity provider's own document has no {name}")
        if url.startswith("http://") and not self._issuer.startswith("http://"):
            raise ProviderError(f"the identity provider's {name} is not an https address")
        return url

    async def _get(self, url: str) -> dict[str, Any]:
        return await self._ask("GET", url)

    async def _ask(self, method: str, url: str, form: dict[str, str] | None = None) -> dict[str, Any]:
        """A JSON object. No redirect is followed."""
        body = b""
        try:
            with trio.fail_after(FETCH_S):
                async with (
                    httpx2.AsyncClient(timeout=FETCH_S) as http,
                    http.stream(method, url, data=form, headers={"Accept": "application/json"}) as response,
                ):
                    async for chunk in response.aiter_bytes():
                        if len(body) <= ANSWER_BYTES_MAX:  # the rest is read and dropped, for FETCH_S at most
                            body += chunk
            if response.status_code != 200:
                raise ProviderError(f"the identity provider answered {response.status_code}")
            if len(body) > ANSWER_BYTES_MAX:
                raise ProviderError(f"the identity provider's answer is over {ANSWER_BYTES_MAX} bytes")
            return msgspec.json.decode(body, type=dict[str, Any])
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, trio.TooSlowError) as error:
            raise ProviderError(f"the identity provider does not answer: {type(error).__name__}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise ProviderError("the identity provider answered with something else than JSON") from None

    # --- browsers --------------------------------------------------------------------------------------------------

    @property
    def for_browsers(self) -> bool:
        return self._config.client_id is not None

    async def begin(self, redirect_uri: str) -> tuple[str, str]:
        """→ the address to send a browser to, and what its cookie holds meanwhile."""
        assert self._config.client_id
        endpoint, now = await self._endpoint("authorization_endpoint"), time.monotonic()
        self._flows = {at: flow for at, flow in self._flows.items() if flow.until > now}
        if len(self._flows) >= FLOWS_MAX:
            del self._flows[next(iter(self._flows))]
        flow = Flow(
            state=secrets.token_urlsafe(24),
            nonce=secrets.token_urlsafe(24),
            verifier=secrets.token_urlsafe(48),
            redirect_uri=redirect_uri,
            until=now + FLOW_S,
        )
        cookie = secrets.token_urlsafe(24)
        self._flows[cookie] = flow
        query = urlencode(
            {
                "response_type": "code",
                "client_id": self._config.client_id,
                "redirect_uri": redirect_uri,
                "scope": "openid",
                "state": flow.state,
                "nonce": flow.nonce,
                "code_challenge": _challenge(flow.verifier),
                "code_challenge_method": "S256",
            }
        )
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{query}", cookie

    async def end(self, cookie: str, state: str, code: str) -> Caller:
        """A browser has come back: who it is. Each flow ends once."""
        flow = self._flows.pop(cookie, None)
        if flow is None or flow.until <= time.monotonic() or not same(flow.state.encode(), state.encode()):
            raise Unauthorized("this log-in was not begun here, or took too long", hint="Begin again at /login.")
        assert self._config.client_id
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": flow.redirect_uri,
            "client_id": self._config.client_id,
            "code_verifier": flow.verifier,
        }
        if self._client_secret is not None:
            form["client_secret"] = self._client_secret
        try:
            answer = await self._ask("POST", await self._endpoint("token_endpoint"), form)
        except ProviderError as error:  # a code that is made up or was used gets 400
            raise Unauthorized(f"the log-in failed: {error.message}", hint="Begin again at /login.") from error
        claims = await self._claims(str(answer.get("id_token", "")), self._config.client_id)
        if not same(str(claims.get("nonce", "")).encode(), flow.nonce.encode()):
            raise Unauthorized("the log-in's token is of another log-in", hint="Begin again at /login.")
        return self._caller(claims)


def _check(claims: dict[str, Any], issuer: str, audience: str) -> None:
    """Raises `JoseError`."""
    jwt.JWTClaimsRegistry(
        leeway=LEEWAY_S,
        iss={"essential": True, "value": issuer},
        aud={"essential": True, "value": audience},
        exp={"essential": True},
    ).validate(claims)


def _imported(answer: dict[str, Any]) -> jwk.KeySet:
    """Only keys that sign, of a kind that we take; an odd one among them is passed over (RFC 7517, 5)."""
    keys = []
    listed = answer.get("keys")
    for each in listed if isinstance(listed, list) else []:
        if isinstance(each, dict) and each.get("kty") in KINDS and each.get("use", "sig") == "sig":
            try:
                keys.append(jwk.import_key(each))
            except (JoseError, ValueError, TypeError, KeyError):
                continue
    if not keys:
        raise ProviderError("the identity provider has no key that we could use")
    return jwk.KeySet(keys)


def _challenge(verifier: str) -> str:
    return urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def _secret(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not (secret := os.environ.get(variable, "").strip()):
        raise ConfigError(
            f"oidc.client_secret_env names {variable}, and the server's environment does not have it",
            hint="Set the variable for the server, or leave the setting out for a public client.",
        )
    return secret
