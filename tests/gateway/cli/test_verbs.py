"""The verbs against a real node, over its public protocols."""

import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from security.certificates import ensure_development_ca

pytestmark = pytest.mark.services


class TestPublish:
    def test_arguments_are_records_in_order_and_each_answer_says_where(self, node: Any, topic: str) -> None:
        receipts = node.rows("publish", f"{topic}/eu/7", '{"amount": 12}', "hello", "")
        assert [receipt["topic"] for receipt in receipts] == [topic] * 3
        assert all(uuid.UUID(receipt["id"]).version == 7 for receipt in receipts)
        records = node.read(topic)
        assert [record["id"] for record in records] == [receipt["id"] for receipt in receipts]
        assert [record["offset"] for record in records] == [receipt["offset"] for receipt in receipts]
        assert [record.get("value", record.get("text")) for record in records] == [{"amount": 12}, "hello", ""]
        assert {record["key"] for record in records} == {"eu/7"}

    def test_key_headers_and_acks(self, node: Any, topic: str) -> None:
        node.ok("publish", topic, "x", "--key", "", "--header", "source=till=3", "--header", "empty=", "--acks", "durable")
        (record,) = node.read(f"{topic}/")
        assert (record["key"], record["headers"]["source"], record["headers"]["empty"]) == ("", "till=3", "")

    def test_acks_none_has_no_offset(self, node: Any, topic: str) -> None:
        (receipt,) = node.rows("publish", topic, "x", "--acks", "none")
        assert "offset" not in receipt
        assert "@" not in node.ok("publish", topic, "x", "--acks", "none")

    def test_stdin_is_a_record_a_line(self, node: Any, topic: str) -> None:
        (totals,) = node.rows("publish", topic, "-", stdin=b'one\n\n\xff\xfe\n{"n": 4}')
        assert (totals["records"], totals["resent_requests"]) == (4, 0)
        one, empty, raw, document = node.read(topic)
        assert (one["text"], empty["text"], raw["value64"], document["value"]) == ("one", "", "//4=", {"n": 4})

    def test_a_csv_file_with_keys_and_times(self, node: Any, topic: str, tmp_path: Path) -> None:
        rows = "".join(f"{'UA' if number % 2 else 'AA'},{number},2013-01-01T{number % 24:02}:00:00Z\n" for number in range(1200))
        (tmp_path / "flights.csv").write_text("carrier,flight,time_hour\n" + rows)
        arguments = (
            "--file",
            str(tmp_path / "flights.csv"),
            "--key-column",
            "carrier",
            "--timestamp-column",
            "time_hour",
            "--numbers",
        )
        (totals,) = node.rows("publish", topic, *arguments)
        assert (totals["records"], totals["requests"]) == (1200, 3)
        records = node.read(f"{topic}/UA")
        assert [record["value"]["flight"] for record in records] == [number for number in range(1200) if number % 2]
        assert records[0]["timestamp"] == 1_357_002_000_000

    def test_what_was_read_can_be_published_again(self, node: Any, topic: str, tmp_path: Path) -> None:
        node.ok("publish", f"{topic}/a", "x", '{"n": 1.10}', "--header", "h=1")
        (tmp_path / "read.ndjson").write_text(node.ok("subscribe", topic, "--from", "beginning", "--no-follow", "--json"))
        node.ok("publish", f"{topic}-copy", "--file", str(tmp_path / "read.ndjson"), "--envelope")
        places = ("topic", "partition", "offset")
        first, second = ([{**record, **dict.fromkeys(places)} for record in node.read(name)] for name in (topic, f"{topic}-copy"))
        assert first == second

    def test_a_refusal_shows_what_the_node_said(self, node: Any) -> None:
        result = node.call("publish", "no good name", "x")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "request id" in result.stderr
        error = json.loads(node.call("publish", "no good name", "x", "--json").stderr)["error"]
        assert (error["problem"]["status"], error["exit_code"]) == (400, 1)

    @pytest.mark.parametrize(
        "arguments",
        [
            ("t",),
            ("t", "x", "--file", "f.csv"),
            ("t", "-", "x"),
            ("t/a", "x", "--key", "b"),
            ("t/a", "--file", "f.csv", "--key-column", "k"),
            ("t", "x", "--header", "novalue"),
            ("t", "x", "--header", "a=1", "--header", "a=2"),
            ("t", "x", "--acks", "some"),
            ("t", "x", "--client-key", "k.pem"),
            ("t", "--file", "missing.csv"),
        ],
    )
    def test_usage_errors_are_2(self, node: Any, arguments: tuple[str, ...]) -> None:
        assert node.call("publish", *arguments).exit_code == 2


class TestSubscribe:
    def test_a_follower_gets_what_it_asked_for_and_no_more(self, node: Any, topic: str) -> None:
        node.ok("publish", f"{topic}/a", "1", "2", "3")
        node.ok("publish", f"{topic}/b", "4")
        rows = node.rows("subscribe", topic, "--from", "beginning", "--count", "3")
        assert [row["text"] for row in rows] == ["1", "2", "3"]
        (row,) = node.rows("subscribe", topic, "--from", "beginning", "--key", "b", "--count", "1")
        assert row["text"] == "4"
        assert node.rows("subscribe", f"{topic}/b", "--from", "beginning", "--count", "1") == [row]

    @pytest.mark.parametrize("follow", [("--no-follow",), ("--count", "1")])
    def test_from_an_offset_a_time_a_cursor(self, node: Any, topic: str, follow: tuple[str, ...]) -> None:
        lines = b'{"at": 1000}\n{"at": 2000}\n{"at": 3000}\n'
        node.ok("publish", topic, "-", "--as", "json", "--timestamp-column", "at", stdin=lines)
        _, second, third = node.read(topic)
        place = ("--partition", str(second["partition"]))
        assert node.rows("subscribe", topic, "--from", f"offset:{third['offset']}", *place, *follow) == [third]
        assert node.rows("subscribe", topic, "--from", "1970-01-01T00:00:02Z", *follow)[0] == second
        assert node.rows("subscribe", topic, "--from", "10 minutes ago", "--no-follow") == []
        assert node.rows("subscribe", topic, "--from", "latest", "--no-follow") == []

    def test_a_whole_topic_is_read_over_many_pages(self, node: Any, topic: str) -> None:
        node.ok("topics", "create", topic, "--partitions", "3")
        values = b"\n".join(b'{"n": %d, "k": "key %d"}' % (number, number % 7) for number in range(2500))
        node.ok("publish", topic, "-", "--as", "json", "--key-column", "k", stdin=values)
        for records in (node.read(topic), node.rows("subscribe", topic, "--from", "beginning", "--count", "2500")):
            assert sorted(record["value"]["n"] for record in records) == list(range(2500))
            for key in {record["key"] for record in records}:
                numbers = [record["value"]["n"] for record in records if record["key"] == key]
                assert numbers == sorted(numbers)

    def test_people_see_a_line_a_record(self, node: Any, topic: str) -> None:
        node.ok("publish", f"{topic}/a", "two\nlines \x1b[2J")
        out = node.ok("subscribe", topic, "--from", "beginning", "--no-follow")
        assert out.endswith(f"{topic}/0 @ 0  a  two\\x0alines \\x1b[2J\n")

    def test_an_unknown_topic_is_refused_in_both_ways_of_reading(self, node: Any, topic: str) -> None:
        for follow in ("--follow", "--no-follow"):
            result = node.call("subscribe", topic, "--from", "beginning", follow)
            assert (result.exit_code, result.stdout) == (1, "")
            assert "no such topic" in result.stderr

    @pytest.mark.parametrize("position", ["yesterday", "offset:-1", "2026-11-23T13:00:00", "cursor:"])
    def test_a_position_that_is_none_is_a_usage_error(self, node: Any, topic: str, position: str) -> None:
        assert node.call("subscribe", topic, "--from", position).exit_code == 2


class TestTopics:
    def test_from_making_to_deleting(self, node: Any, topic: str) -> None:
        (made,) = node.rows("topics", "create", topic, "--partitions", "2")
        assert (made["name"], made["partitions"]) == (topic, 2)
        assert topic in node.ok("topics", "list")
        assert topic in {row["name"] for row in node.rows("topics", "list")}
        node.ok("publish", topic, "x", "y")
        (described,) = node.rows("topics", "describe", topic)
        assert sum(one["high_watermark"] for one in described["partitions"]) == 2
        assert "next offset" in node.ok("topics", "describe", topic)
        (altered,) = node.rows("topics", "alter", topic, "--partitions", "3", "--config", "max.message.bytes=60000")
        assert (altered["partitions"], altered["configs"]["max.message.bytes"]) == (3, "60000")
        (reset,) = node.rows("topics", "alter", topic, "--reset", "max.message.bytes")
        assert reset["configs"].get("max.message.bytes") != "60000"
        assert node.rows("topics", "delete", topic, "--yes") == [{"deleted": topic}]
        assert node.call("topics", "describe", topic).exit_code == 1

    def test_delete_asks_first(self, node: Any, topic: str) -> None:
        node.ok("topics", "create", topic)
        assert node.call("topics", "delete", topic, stdin=b"n\n").exit_code == 2
        node.ok("topics", "describe", topic)

    @pytest.mark.parametrize(
        "arguments", [("alter", "t"), ("create", "t", "--config", "x"), ("alter", "t", "--config", "a=1", "--config", "a=2")]
    )
    def test_usage_errors_are_2(self, node: Any, arguments: tuple[str, ...]) -> None:
        assert node.call("topics", *arguments).exit_code == 2


class TestTokens:
    def test_a_token_can_do_what_it_was_made_for_until_it_is_revoked(self, node: Any, topic: str, tmp_path: Path) -> None:
        node.ok("topics", "create", topic)
        path = tmp_path / "till.token"
        scope = ("--scope", f"publish:{topic}:eu/*")
        (made,) = node.rows("tokens", "create", "till", "--role", "publisher", *scope, "--ttl", "30d", "--out", str(path))
        assert "token" not in made
        assert path.stat().st_mode & 0o777 == 0o600
        as_till = ("--token-file", str(path))
        node.ok("publish", f"{topic}/eu/7", "x", *as_till)
        for refused in (("publish", f"{topic}/us/7", "x"), ("subscribe", topic, "--no-follow"), ("tokens", "list")):
            assert node.call(*refused, *as_till).exit_code == 1
        assert "valid for 4w" in node.ok("tokens", "list")
        assert node.rows("tokens", "revoke", made["id"]) == [{"revoked": made["id"]}]
        result = node.call("publish", f"{topic}/eu/7", "x", *as_till)
        assert (result.exit_code, "revoked" in result.stderr) == (1, True)
        assert "revoked" in node.ok("tokens", "list")

    def test_the_secret_alone_is_on_stdout(self, node: Any) -> None:
        result = node.call("tokens", "create", "once", "--role", "subscriber")
        assert result.stdout.startswith("sprawl_")
        assert len(result.stdout.split()) == 1
        assert "shown once" in result.stderr
        (row,) = (row for row in node.rows("tokens", "list") if row["name"] == "once")
        assert "token" not in row
        assert result.stdout.strip() not in node.ok("tokens", "list")

    def test_a_file_that_exists_is_not_overwritten_and_no_token_is_made(self, node: Any, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("mine")
        assert node.call("tokens", "create", "never", "--role", "publisher", "--out", str(tmp_path / "token")).exit_code == 2
        assert (tmp_path / "token").read_text() == "mine"
        assert "never" not in {row["name"] for row in node.rows("tokens", "list")}

    def test_the_environments_token_is_used(self, node: Any) -> None:
        secret = node.ok("tokens", "create", "environment", "--role", "subscriber").strip()
        assert node.call("topics", "list", SPRAWL_TOKEN=secret).exit_code == 0
        assert node.call("tokens", "list", SPRAWL_TOKEN=secret).exit_code == 1

    @pytest.mark.parametrize("arguments", [("create", "x"), ("create", "x", "--role", "admin", "--ttl", "soon"), ("revoke",)])
    def test_usage_errors_are_2(self, node: Any, arguments: tuple[str, ...]) -> None:
        assert node.call("tokens", *arguments).exit_code == 2

    def test_a_wrong_token_is_refused_and_not_shown(self, node: Any) -> None:
        wrong = "sprawl_abcdefghijkl_" + "s" * 43
        for verb in (("topics", "list"), ("subscribe", "t")):
            result = node.call(*verb, SPRAWL_TOKEN=wrong)
            assert (result.exit_code, wrong in result.output) == (1, False)


class TestTrust:
    def test_another_ca_is_not_trusted(self, node: Any, tmp_path: Path) -> None:
        (tmp_path / "certs").mkdir(mode=0o700)
        other = ensure_development_ca(tmp_path / "certs", ["127.0.0.1"], datetime.now(UTC))
        for verb in (("topics", "list"), ("subscribe", "t")):
            result = node.call(*verb, "--ca", str(other.ca))
            assert result.exit_code == 3
            assert "--ca" in result.stderr

    def test_a_node_that_is_not_there_is_3(self, node: Any) -> None:
        for verb in (("topics", "list"), ("subscribe", "t"), ("publish", "t", "x")):
            assert node.call(*verb, "--url", "https://127.0.0.1:1").exit_code == 3
