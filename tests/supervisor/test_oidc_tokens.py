"""Tokens of an identity provider, checked against one that runs here, with real keys, over real HTTP."""

from __future__ import annotations

import hmac
import json
import time
from base64 import urlsafe_b64encode
from hashlib import sha256
from urllib.parse import parse_qs, urlsplit

import pytest
import trio
from joserfc import jwk, jwt

from hermetic.protocol.errors import Unauthorized
from hermetic.supervisor import oidc
from hermetic.supervisor.config import Oidc
from hermetic.supervisor.oidc import Provider, ProviderError


class Issuer:
    """The provider. `keys` are those that it publishes; `answers` counts what it was asked for."""

    def __init__(self) -> None:
        self.keys = [jwk.RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})]
        self.answers: dict[str, int] = {}
        self.down = False
        self.padding = b""
        self.url = ""
        self.codes: dict[str, dict[str, str]] = {}
        self.nonce = ""

    async def serve(self, *, task_status) -> None:
        await trio.serve_tcp(self._handle, 0, host="127.0.0.1", task_status=task_status)

    async def _handle(self, stream: trio.SocketStream) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := await stream.receive_some(65536)):
                return
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(next((v for n, v in headers_of(head) if n == b"content-length"), b"0"))
        while len(body) < length:
            body += await stream.receive_some(65536)
        path = head.split(b" ")[1].decode()
        self.answers[path] = self.answers.get(path, 0) + 1
        status, answer = (503, b"{}") if self.down else self._answer(path, body)
        await stream.send_all(
            b"HTTP/1.1 %d x\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
            % (status, len(answer))
            + answer
        )
        await stream.aclose()

    def _answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/.well-known/openid-configuration":
            about = {
                "issuer": self.url,
                "jwks_uri": f"{self.url}/keys",
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
            }
            return 200, json.dumps(about).encode()
        if path == "/keys":
            shown = {"keys": [key.as_dict(private=False) for key in self.keys] + [{"kty": "later", "kid": "x"}]}
            return 200, json.dumps(shown).encode() + self.padding
        if path == "/token":
            form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            asked = self.codes.pop(form["code"], None)
            challenge = segment(sha256(form["code_verifier"].encode()).digest())
            if asked is None or asked["code_challenge"] != challenge or asked["redirect_uri"] != form["redirect_uri"]:
                return 400, b'{"error":"invalid_grant"}'
            token = self.token(aud="browser", nonce=self.nonce or asked["nonce"])
            return 200, json.dumps({"id_token": token, "access_token": "x", "token_type": "Bearer"}).encode()
        return 404, b"{}"

    def token(self, key: jwk.Key | None = None, alg: str = "RS256", **changed: object) -> str:
        now = int(time.time())
        claims = {
            "iss": self.url, "aud": "hermetic", "sub": "zoe", "iat": now, "exp": now + 300, "tenant": "ann",
            "scope": "openid hermetic:run",
        } | changed  # fmt: skip
        key = key or self.keys[-1]
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode({"alg": alg, "kid": key.kid}, claims, key, algorithms=[alg])


def segment(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def headers_of(head: bytes) -> list[tuple[bytes, bytes]]:
    return [(n.lower(), v.strip()) for n, _, v in (line.partition(b":") for line in head.split(b"\r\n")[1:])]


@pytest.fixture
async def issuer(nursery) -> Issuer:
    made = Issuer()
    (listener,) = await nursery.start(made.serve)
    made.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
    return made


@pytest.fixture
def provider(issuer: Issuer) -> Provider:
    return Provider(Oidc(issuer=issuer.url, audience="hermetic", client_id="browser"))


async def test_a_token_is_a_caller_with_its_tenant_user_and_scopes(issuer, provider):
    caller = await provider.caller(issuer.token())
    assert (caller.tenant, caller.user, caller.key_id) == ("ann", "zoe", None)
    assert caller.scopes == {"run", "read"}
    assert (await provider.caller(issuer.token(scope=["hermetic:admin"]))).scopes == {"run", "read", "admin"}
    assert (await provider.caller(issuer.token(scope="admin run hermetic:adm"))).scopes == set()
    assert (await provider.caller(issuer.token(scope=None))).scopes == set()
    await provider.caller(issuer.token(aud=["other", "hermetic"]))


async def test_other_kinds_of_keys_sign_as_well(issuer, provider):
    issuer.keys = [
        jwk.ECKey.generate_key("P-256", {"kid": "ec"}),
        jwk.OKPKey.generate_key("Ed25519", {"kid": "ed"}),
    ]
    await provider.caller(issuer.token(issuer.keys[0], "ES256"))
    await provider.caller(issuer.token(issuer.keys[1], "Ed25519"))


async def test_a_token_that_is_not_meant_or_not_good_is_refused(issuer, provider):
    stranger = jwk.RSAKey.generate_key(2048, {"kid": "one"})
    public = issuer.keys[0].as_pem(private=False)
    none = jwt.encode({"alg": "RS256", "kid": "one"}, {}, issuer.keys[0]).split(".")
    claims = issuer.token().split(".")[1]
    unsigned = segment(b'{"alg":"none"}') + f".{claims}."
    shared = segment(b'{"alg":"HS256","kid":"one"}') + f".{claims}"
    now = time.time()
    for name, token in {
        "another audience": issuer.token(aud="other"),
        "no audience": issuer.token(aud=None),
        "another issuer": issuer.token(iss=issuer.url + "/"),
        "no issuer": issuer.token(iss=None),
        "expired": issuer.token(exp=int(now) - 120),
        "no expiry": issuer.token(exp=None),
        "not yet": issuer.token(nbf=int(now) + 120),
        "from the future": issuer.token(iat=int(now) + 120),
        "no tenant": issuer.token(tenant=None),
        "a tenant that is no text": issuer.token(tenant=["ann"]),
        "nobody": issuer.token(sub=None),
        "a user with spaces": issuer.token(sub="a b"),
        "a stranger's signature": issuer.token(stranger),
        "the public key as a shared secret": shared + "." + segment(hmac.digest(public, shared.encode(), "sha256")),
        "unsigned": unsigned,
        "no claims": ".".join(none),
        "cut": issuer.token()[:-10],
        "two parts": issuer.token().rpartition(".")[0],
        "no token": "a.b.c",
        "empty parts": "..",
        "long": issuer.token(filler="x" * 20_000),
    }.items():
        with pytest.raises(Unauthorized):
            await provider.caller(token)
            raise AssertionError(name)


async def test_a_new_key_is_fetched_when_its_first_token_comes_and_a_withdrawn_one_opens_nothing(
    issuer, provider, monkeypatch
):
    monkeypatch.setattr(oidc, "AGAIN_S", 0.0)
    await provider.caller(issuer.token())
    await provider.caller(issuer.token())
    assert issuer.answers["/keys"] == 1, "kept"
    old = issuer.keys[0]
    issuer.keys = [jwk.RSAKey.generate_key(2048, {"kid": "two"})]
    await provider.caller(issuer.token())
    assert issuer.answers["/keys"] == 2
    with pytest.raises(Unauthorized):
        await provider.caller(issuer.token(old))


async def test_made_up_keys_do_not_make_us_hammer_the_provider(issuer, provider):
    await provider.caller(issuer.token())
    for number in range(20):
        with pytest.raises(Unauthorized):
            await provider.caller(
                issuer.token(jwk.RSAKey.import_key(issuer.keys[0].as_dict(private=True), {"kid": f"k{number}"}))
            )
    assert issuer.answers["/keys"] == 1


async def test_many_first_tokens_at_once_fetch_the_keys_once(issuer, provider):
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(provider.caller, issuer.token())
    assert issuer.answers["/keys"] == 1


async def test_a_provider_that_does_not_answer_is_said_to_be_and_keys_that_we_have_go_on(issuer, monkeypatch):
    monkeypatch.setattr(oidc, "AGAIN_S", 0.0)
    provider = Provider(Oidc(issuer=issuer.url, audience="hermetic"))
    issuer.down = True
    with pytest.raises(ProviderError):
        await provider.caller(issuer.token())
    issuer.down = False
    await provider.caller(issuer.token())
    issuer.down = True
    monkeypatch.setattr(oidc, "KEYS_S", 0.0)
    await provider.caller(issuer.token())
    monkeypatch.setattr(oidc, "STALE_S", 0.0)
    with pytest.raises(ProviderError):
        await provider.caller(issuer.token())


async def test_an_answer_without_end_is_not_read_to_it(issuer, provider):
    issuer.padding = b" " * oidc.ANSWER_BYTES_MAX
    with pytest.raises(ProviderError):
        await provider.caller(issuer.token())


async def test_a_document_that_names_another_issuer_is_not_believed(issuer):
    with pytest.raises(ProviderError):
        await Provider(Oidc(issuer=issuer.url + "/", audience="hermetic")).caller(issuer.token())


# --- browsers ---------------------------------------------------------------------------------------------------------

BACK = "http://127.0.0.1:1/login/oidc/callback"


async def begun(issuer: Issuer, provider: Provider) -> tuple[str, dict[str, str]]:
    """→ the cookie, and what the browser has brought to the provider, which gives it the code `c`."""
    url, cookie = await provider.begin(BACK)
    assert url.startswith(f"{issuer.url}/authorize?")
    asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert (asked["client_id"], asked["redirect_uri"], asked["code_challenge_method"]) == ("browser", BACK, "S256")
    issuer.codes["c"] = asked
    return cookie, asked


async def test_a_browser_that_comes_back_is_who_the_provider_says(issuer, provider):
    cookie, asked = await begun(issuer, provider)
    caller = await provider.end(cookie, asked["state"], "c")
    assert (caller.tenant, caller.user) == ("ann", "zoe")
    with pytest.raises(Unauthorized):
        await provider.end(cookie, asked["state"], "c")


async def test_a_browser_that_comes_back_with_somebody_elses_log_in_is_refused(issuer, provider):
    cookie, asked = await begun(issuer, provider)
    with pytest.raises(Unauthorized):
        await provider.end(cookie, "other", "c")
    with pytest.raises(Unauthorized):
        await provider.end("other", asked["state"], "c")
    cookie, asked = await begun(issuer, provider)
    with pytest.raises(Unauthorized):
        await provider.end(cookie, asked["state"], "made up")
    cookie, asked = await begun(issuer, provider)
    issuer.nonce = "of another"
    with pytest.raises(Unauthorized):
        await provider.end(cookie, asked["state"], "c")
