"""The first screen and the profile behind it; `test_serve.py` has them on a real node."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.cli.profile import load_profile
from gateway.cli.welcome import Welcome
from gateway.config import load

TOKEN = "sprawl_abcdefghijkl_" + "s" * 43


def welcome(home: Path, token: str | None = TOKEN, address: tuple[str, int] = ("127.0.0.1", 8443), **flags: object) -> Welcome:
    home.mkdir(exist_ok=True)
    config = load(None, {}, {"node.home": str(home), **flags})
    node: Any = SimpleNamespace(addresses={"http": address}, admin_token=token)
    return Welcome.of(node, config)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (("127.0.0.1", 8443), "https://127.0.0.1:8443"),
        (("0.0.0.0", 8443), "https://127.0.0.1:8443"),
        (("::", 8443), "https://[::1]:8443"),
        (("10.0.0.7", 1), "https://10.0.0.7:1"),
    ],
)
def test_the_url_is_one_that_this_machine_can_use(tmp_path: Path, address: tuple[str, int], url: str) -> None:
    assert welcome(tmp_path, address=address).url == url
    profile = load_profile(tmp_path)
    assert profile is not None
    assert (profile.url, profile.token, profile.ca) == (url, TOKEN, tmp_path / "certs" / "ca.pem")


def test_a_plain_listener_is_said_to_be_plain(tmp_path: Path) -> None:
    shown = welcome(tmp_path, **{"listeners.http.plain": True})
    assert shown.url.startswith("http://")
    text = "\n".join(shown.lines(secret_allowed=True))
    assert "plain" in text
    assert "--cacert" not in text


def test_with_certificates_of_ones_own_the_systems_cas_are_trusted(tmp_path: Path) -> None:
    shown = welcome(tmp_path, **{"tls.certificate": "server.pem", "tls.key": "server-key.pem"})
    assert shown.ca is None
    assert "--cacert" not in "\n".join(shown.lines(secret_allowed=True))
    profile = load_profile(tmp_path)
    assert profile is not None
    assert profile.ca is None


def test_the_secret_is_for_terminals_only(tmp_path: Path) -> None:
    shown = welcome(tmp_path)
    assert TOKEN in "\n".join(shown.lines(secret_allowed=True))
    assert TOKEN not in "\n".join(shown.lines(secret_allowed=False))
    assert TOKEN not in str(shown.facts())
    assert TOKEN not in repr(shown)


def test_a_later_start_keeps_the_token_and_takes_the_new_address(tmp_path: Path) -> None:
    welcome(tmp_path)
    later = welcome(tmp_path, token=None, address=("127.0.0.1", 9))
    profile = load_profile(tmp_path)
    assert profile is not None
    assert (profile.token, profile.url) == (TOKEN, "https://127.0.0.1:9")
    assert "from the first start" in "\n".join(later.lines(secret_allowed=True))


def test_a_lost_profile_is_said_to_hold_no_token(tmp_path: Path) -> None:
    welcome(tmp_path)
    (tmp_path / "cli.json").unlink()
    later = welcome(tmp_path, token=None)
    assert later.facts()["profile"] is None
    assert "holds none" in "\n".join(later.lines(secret_allowed=True))


def test_a_home_of_another_name_is_in_the_lines_to_copy(tmp_path: Path) -> None:
    lines = "\n".join(welcome(tmp_path / "a home").lines(secret_allowed=False))
    assert f"--home '{tmp_path}/a home'" in lines
    assert f"-H @'{tmp_path}/a home/authorization'" in lines
