"""The profile that a node leaves for its own machine."""

import stat
from pathlib import Path

import pytest

from gateway.cli.failures import Unusable
from gateway.cli.profile import HEADER_NAME, PROFILE_BYTES_MAX, PROFILE_NAME, Profile, load_profile, save_profile

TOKEN = "sprawl_abcdefghijkl_" + "s" * 43


def written(home: Path) -> Profile:
    profile = Profile("https://127.0.0.1:8443", home / "certs" / "ca.pem", TOKEN, home / "data")
    save_profile(home, profile)
    return profile


def test_it_reads_back(tmp_path: Path) -> None:
    assert written(tmp_path) == load_profile(tmp_path)


def test_no_profile_is_none(tmp_path: Path) -> None:
    assert load_profile(tmp_path) is None
    assert load_profile(tmp_path / "missing") is None


def test_both_files_are_private_and_the_header_is_what_curl_reads(tmp_path: Path) -> None:
    written(tmp_path)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {
        PROFILE_NAME: 0o600,
        HEADER_NAME: 0o600,
    }
    assert (tmp_path / HEADER_NAME).read_text() == f"Authorization: Bearer {TOKEN}\n"


def test_a_new_one_replaces_the_old_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    written(tmp_path)
    save_profile(tmp_path, Profile("https://127.0.0.1:9", None, None))
    assert load_profile(tmp_path) == Profile("https://127.0.0.1:9", None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [HEADER_NAME, PROFILE_NAME]


def test_the_token_is_not_in_its_repr(tmp_path: Path) -> None:
    assert TOKEN not in repr(written(tmp_path))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_profile_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    written(tmp_path)
    (tmp_path / PROFILE_NAME).chmod(mode)
    with pytest.raises(Unusable, match="others than its owner") as refusal:
        load_profile(tmp_path)
    assert "chmod 600" in refusal.value.what_to_do


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b"\xff",
        b'{"url": 1, "ca": null, "token": null, "data": null}',
        b'{"url": "u", "ca": 1, "token": null, "data": null}',
        b'{"url": "u", "ca": null, "token": null}',
        b" " * (PROFILE_BYTES_MAX + 1),
    ],
)
def test_a_damaged_profile_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    written(tmp_path)
    (tmp_path / PROFILE_NAME).write_bytes(content)
    with pytest.raises(Unusable, match=PROFILE_NAME) as refusal:
        load_profile(tmp_path)
    assert "--token-file" in refusal.value.what_to_do


def test_every_truncated_profile_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    whole = (tmp_path / PROFILE_NAME).read_bytes()
    for size in range(len(whole.rstrip())):
        (tmp_path / PROFILE_NAME).write_bytes(whole[:size])
        with pytest.raises(Unusable):
            load_profile(tmp_path)
