"""Which node, trusted how, as whom."""

from pathlib import Path
from typing import Any

import pytest

from gateway.cli.connection import TOKEN_BYTES_MAX, Connection, resolve_connection
from gateway.cli.failures import Unusable
from gateway.cli.profile import Profile, save_profile

OWN = "https://127.0.0.1:8443"
OTHER = "https://node.example:8443"


@pytest.fixture(autouse=True)
def no_token_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPRAWL_TOKEN", raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    save_profile(tmp_path, Profile(OWN, tmp_path / "ca.pem", "profile-token"))
    return tmp_path


def resolve(**given: Any) -> Connection:
    names = ("url", "ca", "token_file", "client_cert", "client_key", "home")
    return resolve_connection(*(given.get(name) for name in names))


def test_without_flags_the_profile_says_it_all(home: Path) -> None:
    assert resolve(home=home) == Connection(OWN, home / "ca.pem", "profile-token")


def test_the_profile_of_the_working_folder_is_the_default(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / ".sprawl").symlink_to(home)
    monkeypatch.chdir(tmp_path / "here")
    assert resolve().token == "profile-token"


def test_the_token_and_ca_of_a_profile_go_to_its_own_node_only(home: Path) -> None:
    assert resolve(home=home, url=OTHER) == Connection(OTHER, None, None)
    assert resolve(home=home, url=OWN + "/").token == "profile-token"


def test_flags_win_over_the_environment_and_that_over_the_profile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPRAWL_TOKEN", "environment-token")
    assert resolve(home=home).token == "environment-token"
    (home / "token").write_text("flag-token\n")
    assert resolve(home=home, token_file=home / "token").token == "flag-token"


def test_a_client_certificate_stands_alone(home: Path) -> None:
    assert resolve(home=home, client_cert=home / "c.pem").token is None


def test_a_token_file_may_be_the_header_file_of_curl(home: Path) -> None:
    assert resolve(url=OTHER, token_file=home / "authorization").token == "profile-token"


@pytest.mark.parametrize("content", [b"", b"two words", b"t\xc3\xb6ken", b"\x1b[2J", b"x" * (TOKEN_BYTES_MAX + 1)])
def test_what_is_no_token_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(Unusable) as refusal:
        resolve(url=OTHER, token_file=tmp_path / "token")
    assert not content or content.decode("latin-1") not in "".join(refusal.value.lines())


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="token"):
        resolve(url=OTHER, token_file=tmp_path / "token")


def test_a_home_without_a_profile_is_refused_when_it_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(Unusable) as refusal:
        resolve(home=tmp_path)
    assert "sprawl serve" in refusal.value.what_to_do


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8443",
        "ftp://a",
        "https://",
        "https://a/path",
        "https://u:p@a",
        "https://a:port",
        "https://[::1",
        "https://a?x",
    ],
)
def test_what_is_no_address_is_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unusable, match="no node's address"):
        resolve(url=url) if url else resolve(url="https:///")


@pytest.mark.parametrize(("url", "sent"), [("http://127.0.0.1:1", True), ("http://[::1]:1", True), ("http://localhost:1", True),
                                           ("http://10.0.0.1", False), ("http://127.0.0.1.example", False)])  # fmt: skip
def test_a_token_leaves_this_machine_encrypted_only(url: str, sent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPRAWL_TOKEN", "token")
    if sent:
        assert resolve(url=url).token == "token"
    else:
        with pytest.raises(Unusable, match="not encrypted"):
            resolve(url=url)


def test_the_token_is_not_in_its_repr() -> None:
    assert "secret" not in repr(Connection(OWN, None, "secret"))


@pytest.mark.parametrize(
    ("url", "websocket"), [(OWN, "wss://127.0.0.1:8443/v1/ws"), ("http://localhost:1", "ws://localhost:1/v1/ws")]
)
def test_both_protocols_have_one_address(url: str, websocket: str) -> None:
    assert Connection(url).websocket_url == websocket


def test_a_ca_file_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    for ca in (tmp_path / "ca.pem", tmp_path / "missing.pem"):
        with pytest.raises(Unusable, match=r"\.pem cannot be used"):
            Connection(OWN, ca).tls()
