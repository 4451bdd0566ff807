"""What a line of the log says, and what it never says."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import UnknownTopic
from gateway.observe.logs import FRAMES_MAX, AppendedFile, JsonFormatter, open_log, redacted, request_id
from gateway.settings import LoggingSection
from security.identity.chain import BearerToken
from security.identity.tokens import TokenStore

logger = logging.getLogger("test.logs")

SECRET = "Zk3x9-Qw_7Lm2Np8Rt5Vy1Bc4Df6Gh0JkMnPqRsTuVw"
TOKEN = f"sprawl_abcdefgh2345_{SECRET}"
MARKER = "planted-marker-0123456789"

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    """The node's log on a file, read back line by line."""
    path = tmp_path / "node.log"
    log = open_log(LoggingSection(file=str(path), level="debug"))

    def read() -> list[dict[str, Any]]:
        assert log.flush()
        return [json.loads(line) for line in path.read_text().splitlines()]

    yield read
    log.close()


class TestALine:
    def test_has_time_level_logger_and_message(self, lines: Lines) -> None:
        logger.warning("disk %s is at %d %%", "a", 93)
        (line,) = lines()
        assert line.pop("at").endswith("Z")
        assert line == {"level": "warning", "logger": "test.logs", "message": "disk a is at 93 %"}

    async def test_has_the_id_of_its_request(self, lines: Lines) -> None:
        async def request(number: int) -> None:
            request_id.set(f"r{number}")
            await asyncio.sleep(0)
            logger.info("%d", number)

        await asyncio.gather(*(request(number) for number in range(5)))
        logger.info("outside")
        told = {line["message"]: line.get("request_id") for line in lines() if line["logger"] == "test.logs"}
        assert told == {"outside": None} | {str(number): f"r{number}" for number in range(5)}

    def test_has_its_extra_fields_whatever_they_are(self, lines: Lines) -> None:
        logger.info("x", extra={"count": 3, "where": {"a": [1, None]}, "odd": {1, 2}, "thing": Path("p"), "request_id": "given"})
        (line,) = lines()
        assert (line["count"], line["where"], line["thing"], line["request_id"]) == (
            3,
            {"a": [1, None]},
            "PosixPath('p')",
            "given",
        )
        assert sorted(line["odd"]) == [1, 2]

    def test_shows_of_objects_what_they_show_and_of_bytes_their_number(self, lines: Lines) -> None:
        bound = {"n": 2**80, "deep": {"a": {"b": {"c": {"d": {"e": 1}}}}}, "many": list(range(1_000))}
        logger.info("x", extra={"who": BearerToken(SECRET, SECRET), "raw": [b"abc"], "bound": bound})
        (line,) = lines()
        assert (line["who"], line["raw"]) == ("BearerToken()", ["<3 bytes>"])
        assert len(line["bound"]["many"]) == 100

    @given(st.text())
    def test_is_one_line_of_json_whatever_is_said(self, text: str) -> None:
        record = logging.LogRecord("n", logging.INFO, "f", 1, "%s", (text,), None)
        formatted = JsonFormatter().format(record).encode("utf-8", "backslashreplace")
        assert b"\n" not in formatted
        json.loads(formatted)

    def test_that_cannot_be_rendered_is_told_without_what_was_in_it(
        self, lines: Lines, capfd: pytest.CaptureFixture[str]
    ) -> None:
        class Broken:
            def __repr__(self) -> str:
                raise ValueError(MARKER)

        logger.info("%s", MARKER, extra={"thing": Broken()})
        assert [line["message"] for line in lines()] == ["a line could not be rendered"]
        assert lines()[0]["error"]["type"] == "builtins.ValueError"
        assert MARKER not in "".join(map(str, lines())) + "".join(capfd.readouterr())

    def test_is_bounded(self, lines: Lines) -> None:
        logger.info("x" * 1_000_000)
        assert len(lines()[0]["message"]) < 10_000


class TestExceptions:
    def test_of_ours_say_what_they_say(self, lines: Lines) -> None:
        try:
            raise UnknownTopic("orders")
        except UnknownTopic:
            logger.exception("failed")
        error = lines()[0]["error"]
        assert error["type"] == "broker.errors.UnknownTopic"
        assert error["message"].startswith("topic 'orders' does not exist")
        assert error["frames"][-1].endswith("test_of_ours_say_what_they_say")

    @pytest.mark.parametrize(
        "provoke",
        [lambda: int(MARKER), lambda: {}[MARKER], lambda: json.loads(MARKER), lambda: MARKER.encode().decode("utf-16")],
        ids=["ValueError", "KeyError", "JSONDecodeError", "UnicodeDecodeError"],
    )
    def test_of_others_do_not_quote_what_they_choked_on(
        self, provoke: Callable[[], object], lines: Lines, tmp_path: Path
    ) -> None:
        try:
            provoke()
        except Exception as error:
            logger.exception("failed")
            logger.error("again", exc_info=error)
        for line in lines():
            assert "message" not in line["error"]
            assert line["error"]["frames"]
        assert MARKER.encode() not in (tmp_path / "node.log").read_bytes()

    def test_tell_what_they_were_raised_from(self, lines: Lines) -> None:
        try:
            try:
                raise OSError(28, "No space left on device")
            except OSError as cause:
                raise RuntimeError(MARKER) from cause
        except RuntimeError:
            logger.exception("failed")
        error = lines()[0]["error"]
        assert error["caused_by"]["message"] == "[Errno 28] No space left on device"

    def test_are_bounded(self, lines: Lines) -> None:
        def deep(levels: int) -> None:
            if levels == 0:
                raise ValueError
            deep(levels - 1)

        try:
            deep(100)
        except ValueError:
            logger.exception("failed")
        assert len(lines()[0]["error"]["frames"]) == FRAMES_MAX


class TestSecrets:
    @pytest.mark.parametrize(
        "text",
        [
            TOKEN,
            f"Authorization: Bearer {TOKEN}",
            f"authorization=Bearer {SECRET}",
            f'{{"Authorization": "Bearer {SECRET}"}}',
            f"[(b'authorization', b'Bearer {SECRET}')]",
            f"Authorization: Basic {SECRET}==",
            f"AUTHORIZATION:{SECRET}",
            f"proxy-authorization: {SECRET}",
            f"sec-websocket-protocol: sprawl.v1.json, bearer.{TOKEN}",
            f"sec-websocket-protocol: bearer.{SECRET}",
            f'{{"op":"auth","token":"{TOKEN}"}}',
            f"GET /x?access={TOKEN} HTTP/1.1",
            TOKEN[:30],
            TOKEN + TOKEN,
            f"-----BEGIN EC PRIVATE KEY-----\n{SECRET}\n-----END EC PRIVATE KEY-----",
            f"-----BEGIN PRIVATE KEY-----\n{SECRET}",
        ],
    )
    def test_are_cut_out_wherever_they_stand(self, text: str, lines: Lines, tmp_path: Path) -> None:
        logger.info(text)
        logger.info("%s", text)
        logger.info("x", extra={"headers": {"h": [text]}, "raw": text.encode()})
        try:
            raise OSError(5, text)
        except OSError:
            logger.exception("failed")
        assert len(lines()) == 4
        written = (tmp_path / "node.log").read_text()
        assert SECRET[:9] not in written
        assert "[redacted]" in written

    def test_real_tokens_are_what_is_looked_for(self, tmp_path: Path) -> None:
        store = TokenStore(tmp_path / "tokens.json", lambda: 0, os.urandom)
        for number in range(20):
            text, record = store.create(f"t{number}", ["admin"])
            assert redacted(f"{text}.") == f"sprawl_{record.id}_[redacted]."

    @pytest.mark.parametrize(
        "text",
        [
            "send a bearer token or a client certificate",
            "sprawl_records_in_total",
            "the basic rules",
            "sprawl tokens list",
            "authorization failed",
        ],
    )
    def test_ordinary_words_stay(self, text: str) -> None:
        assert redacted(text) == text


class TestTheFile:
    def test_that_cannot_be_begun_again_is_kept_until_it_can(self, tmp_path: Path) -> None:
        """A descriptor closed twice would by then be another file's."""
        (tmp_path / "folder").mkdir()
        path = tmp_path / "folder" / "log"
        file = AppendedFile(path)
        path.rename(tmp_path / "log.1")
        (tmp_path / "folder").rmdir()
        for _ in range(3):
            with pytest.raises(FileNotFoundError):
                file.write(b"lost\n")
        other = os.open(tmp_path / "other", os.O_CREAT | os.O_WRONLY)
        (tmp_path / "folder").mkdir()
        file.write(b"kept\n")
        file.close()
        os.close(other)  # still open, and still this one
        assert path.read_bytes() == b"kept\n"

    def test_is_born_with_mode_0600(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            AppendedFile(tmp_path / "log").close()
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600

    def test_is_begun_again_when_it_was_moved_away(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        file = AppendedFile(path)
        file.write(b"1\n")
        path.rename(tmp_path / "log.1")
        file.write(b"2\n")
        file.close()
        assert ((tmp_path / "log.1").read_bytes(), path.read_bytes()) == (b"1\n", b"2\n")

    def test_is_no_link_to_elsewhere(self, tmp_path: Path) -> None:
        (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="symbolic links"):
            AppendedFile(tmp_path / "log")


def test_the_log_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    open_log(LoggingSection(file=str(tmp_path / "log"))).close()
    assert (root.handlers, root.level) == before
