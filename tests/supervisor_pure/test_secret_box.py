"""Secrets at rest: what is sealed opens with its key, in its place, and not otherwise."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.protocol.errors import ClientError, ConfigError, HostError
from hermetic.supervisor.config import Secrets, load_config
from hermetic.supervisor.secret_box import KeyRing, check_secret, load_keys, new_key

PLACE = ("acme", "work", "API_KEY")
ONE, TWO = b"1" * 32, b"2" * 32


@given(st.text(min_size=1, max_size=300), st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_what_was_sealed_opens_with_any_ring_that_has_its_key(value, place):
    box = KeyRing([ONE]).seal(value, *place)
    assert KeyRing([TWO, ONE]).open(box, *place) == value
    assert value.encode() not in box or len(value) < 4
    assert KeyRing([ONE]).seal(value, *place) != box, "two boxes of one value have nothing in common"


def test_a_box_does_not_open_with_another_key_in_another_place_or_changed():
    ring = KeyRing([ONE])
    box = ring.seal("sk-0123456789", *PLACE)
    with pytest.raises(HostError, match="does not have"):
        KeyRing([TWO]).open(box, *PLACE)
    for place in (("other", *PLACE[1:]), ("acme", "home", "API_KEY"), ("acme\0work", "API_KEY"), PLACE[:2]):
        with pytest.raises(HostError):
            ring.open(box, *place)
    for at in range(len(box)):
        with pytest.raises(HostError) as caught:
            ring.open(box[:at] + bytes([box[at] ^ 1]) + box[at + 1 :], *PLACE)
        assert "sk-0" not in str(caught.value)
    for size in range(len(box)):
        with pytest.raises(HostError):
            ring.open(box[:size], *PLACE)


def test_keys_come_from_a_file_that_only_its_owner_reads_or_from_the_environment(tmp_path):
    one, two = new_key(), new_key()
    file = tmp_path / "keys"
    file.write_text(f"# the new one\n{two}\n\n{one}\n")
    file.chmod(0o600)
    old = load_keys(Secrets(), {"HERMETIC_SECRETS_KEY": one})
    both = load_keys(Secrets(key_file=str(file)), {"HERMETIC_SECRETS_KEY": "not looked at"})
    assert old and both
    assert both.open(old.seal("value", *PLACE), *PLACE) == "value"
    assert load_keys(Secrets(), {"HERMETIC_SECRETS_KEY": f"{two},{one}"})
    assert load_keys(Secrets(), {}) is None
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read"):
        load_keys(Secrets(key_file=str(file)), {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_keys(Secrets(key_file=str(tmp_path / "nothing")), {})


@pytest.mark.parametrize(
    "text", ["short", "#", base64.b64encode(b"x" * 31).decode(), "é" * 44, "A" * 43 + "=\nrubbish"]
)
def test_what_is_no_key_is_refused_without_being_repeated(text):
    with pytest.raises(ConfigError) as caught:
        load_keys(Secrets(), {"HERMETIC_SECRETS_KEY": text})
    assert text not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    "name",
    ["", "A B", "1A", "A=B", "A\0", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PATH", "HOME", "HERMES_HOME", "LANG",
     "BASH_ENV", "HERMETIC_SECRETS_KEY", "SSL_CERT_FILE", "TERMINAL_CWD", "a" * 200, "Ä"],
)  # fmt: skip
def test_a_name_that_is_not_a_tenants_to_set_is_refused(name):
    with pytest.raises(ClientError, match="name"):
        check_secret(name, "0123456789")


@pytest.mark.parametrize("value", ["", "1234567", "x" * 20_000, "\ud800abcdefgh", "abc\0defghi", "ab" * 100])
def test_a_value_that_cannot_be_kept_or_kept_out_of_the_journal_is_refused_and_not_repeated(value):
    with pytest.raises(ClientError) as caught:
        check_secret("API_KEY", value)
    assert not value or value not in str(caught.value)


def test_no_turn_can_be_given_the_key_of_all_secrets(tmp_path):
    for section in ("agents.mine", "profiles.mine"):
        file = tmp_path / "hermetic.toml"
        file.write_text(f'[{section}]\npass_env = ["MY_KEY"]\n[secrets]\nkey_env = "MY_KEY"\n')
        if section.startswith("agents"):
            file.write_text(file.read_text().replace("pass_env", 'adapter = "demo"\npass_env'))
        with pytest.raises(ConfigError, match="no turn may see"):
            load_config(file)
