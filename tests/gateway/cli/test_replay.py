"""`sprawl replay` against a real node: windows, speeds, targets, and where to go on."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.failures import Interrupted, Refused, Unusable
from gateway.cli.positions import Position
from gateway.cli.replay import Replay, Tempo, parse_speed
from gateway.cli.replay_targets import NdjsonFile
from gateway.cli.replay_window import Begin, Meta, Replayed, Until, parse_begin, parse_until


class Steps:
    """A clock that moves only while somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now_s += seconds


class Pages:
    end_cursor = "99-0"

    def __init__(self, *pages: Sequence[int], fail: Callable[[int], None] = lambda number: None) -> None:
        self._pages, self._fail = pages, fail

    def open(self, begin: Begin, until: Until) -> dict[str, str]:
        return {"cursor": "0-0"}

    def pages(self, where: dict[str, str], until: Until) -> Any:
        for number, page in enumerate(self._pages):
            self._fail(number)
            yield [Replayed(b"{}", Meta(None, "t", 0, at, at, f"{at}-0")) for at in page]


class Kept:
    def __init__(self, steps: Steps) -> None:
        self.groups: list[tuple[float, list[int]]] = []
        self._steps = steps

    def write(self, records: Sequence[Replayed]) -> None:
        self.groups.append((self._steps.now_s, [meta.offset for _, meta in records]))

    def close(self) -> None:
        pass


def replay(pages: Pages, speed: float | None, *, count: int | None = None, pause_ms_max: int | None = None) -> tuple[Any, ...]:
    steps = Steps()
    target = Kept(steps)
    tempo = Tempo(speed, pause_ms_max)
    run = Replay(pages, target, tempo, lambda run: None, count, now_s=lambda: steps.now_s, sleep=steps.sleep)  # type: ignore[arg-type]
    return run, target, steps


FROM = Begin(Position("earliest"))


def test_at_original_speed_each_record_arrives_when_it_is_due() -> None:
    run, target, steps = replay(Pages([0, 0, 1_000], [1_500, 4_000]), 1.0)
    run.play(FROM, Until(), 1)
    assert target.groups == [(0.0, [0, 0]), (1.0, [1_000]), (1.5, [1_500]), (4.0, [4_000])]
    assert steps.slept == [1.0, 0.5, 2.5]


def test_at_full_speed_groups_are_bounded_and_nothing_waits() -> None:
    run, target, steps = replay(Pages(range(1_000), range(1_000, 1_200)), None)
    run.play(FROM, Until(), 1)
    assert [len(group) for _, group in target.groups] == [500, 500, 200]
    assert steps.slept == []
    assert (run.records, run.cursor) == (1_200, "1199-0")


def test_every_pass_has_the_same_window_and_its_own_pace() -> None:
    run, target, _ = replay(Pages([0, 1_000]), 1.0)
    run.play(FROM, Until(), 3)
    assert [number for _, group in target.groups for number in group] == [0, 1_000] * 3
    assert [at for at, _ in target.groups] == [0.0, 1.0, 1.0, 2.0, 2.0, 3.0]
    assert run.passes == 3


def test_count_bounds_each_pass() -> None:
    run, target, _ = replay(Pages([0, 1, 2], [3, 4, 5]), None, count=4)
    run.play(FROM, Until(), 2)
    assert [number for _, group in target.groups for number in group] == [0, 1, 2, 3] * 2


def test_an_interrupt_says_where_to_go_on() -> None:
    def interrupt(number: int) -> None:
        if number == 1:
            raise KeyboardInterrupt

    run, _, _ = replay(Pages([7, 8], [9], fail=interrupt), None)
    with pytest.raises(Interrupted) as interrupted:
        run.play(FROM, Until(), 3)
    assert interrupted.value.exit_code == 130
    assert "--from cursor:8-0 --until cursor:99-0" in interrupted.value.what_to_do
    assert "2 passes" in interrupted.value.what_to_do
    assert "2 records were replayed in pass 1 of 3" in interrupted.value.detail


def test_so_does_a_failure() -> None:
    def fail(number: int) -> None:
        if number == 1:
            raise Refused({"status": 403, "title": "Not allowed"})

    run, _, _ = replay(Pages([7, 8], [9], fail=fail), None)
    with pytest.raises(Refused) as refused:
        run.play(FROM, Until(), 1)
    assert "--from cursor:8-0" in refused.value.detail


@pytest.mark.parametrize(
    ("text", "speed"), [("max", None), ("original", 1.0), ("10x", 10.0), ("0.5", 0.5), (" 2X ", 2.0), ("1e3x", 1_000.0)]
)
def test_speeds(text: str, speed: float | None) -> None:
    assert parse_speed(text) == speed


@pytest.mark.parametrize("text", ["", "x", "fast", "0", "-1x", "nan", "inf", "1e9", "10xx"])
def test_what_is_no_speed_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="speed"):
        parse_speed(text)


@pytest.mark.parametrize("text", ["id:", "id:7", "id:0192A1b2", "beginning", "yesterday", "offset:x"])
def test_what_ends_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"empty|no "):
        parse_until(text, 0, 0)


def test_ids_begin_windows() -> None:
    message_id = "0192a1b2-c3d4-7000-8000-000000000001"
    assert parse_begin(f"id: {message_id.upper()}", 0) == Begin(None, message_id)


def test_a_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out.ndjson"
    for append in (False, True):
        target = NdjsonFile(path, append=append)
        target.write([Replayed(b'{"a":1}', Meta(None, "t", 0, 0, 0, "1-0"))])
        target.close()
    assert path.read_bytes() == b'{"a":1}\n' * 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(Unusable, match="exists"):
        NdjsonFile(path, append=False)
    with pytest.raises(Unusable, match="cannot be written"):
        NdjsonFile(tmp_path / "none" / "out.ndjson", append=True)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    target = NdjsonFile(Path("/dev/full"), append=True)
    with pytest.raises(Unusable, match="cannot be written"):
        target.write([Replayed(b"{}", Meta(None, "t", 0, 0, 0, "1-0"))])


# Against a node


@pytest.fixture
def filled(node: Any, topic: str) -> list[Any]:
    """Six records, one a second from 1970 on, each its own request; the odd ones have key b."""
    for number in range(6):
        line = {"key": "ab"[number % 2], "value": number, "timestamp": 1_000 * number, "headers": {"n": str(number)}}
        node.ok("publish", topic, "-", "--envelope", stdin=json.dumps(line).encode())
    found: list[Any] = node.read(topic)
    return found


def values(rows: list[Any]) -> list[Any]:
    return [row["value"] for row in rows]


@pytest.mark.services
class TestReplay:
    def test_windows(self, node: Any, topic: str, filled: list[Any]) -> None:
        ids = [record["id"] for record in filled]
        b_records = [record for record in filled if record["key"] == "b"]
        partition = ("--partition", str(b_records[0]["partition"]))
        for arguments, wanted in (
            ((), [0, 1, 2, 3, 4, 5]),
            (("--from", "1970-01-01T00:00:02Z"), [2, 3, 4, 5]),
            (("--from", "1970-01-01T00:00:02Z", "--until", "1970-01-01T00:00:04Z"), [2, 3]),
            (("--from", f"id:{ids[1]}", "--until", f"id:{ids[4]}"), [1, 2, 3]),
            (("--from", f"id:{ids[5]}"), [5]),
            (("--from", f"offset:{b_records[1]['offset']}", *partition), [3, 4, 5]),
            (("--until", f"offset:{b_records[2]['offset']}", *partition), [0, 1, 2, 3, 4]),
            (("--count", "2"), [0, 1]),
            (("--key", "b"), [1, 3, 5]),
            (("--key-prefix", "a"), [0, 2, 4]),
            (("--header", "n=3"), [3]),
            (("--from", "latest"), []),
        ):
            assert values(node.rows("replay", topic, *arguments)) == wanted, arguments
        assert values(node.rows("replay", f"{topic}/+", "--times", "2")) == [0, 1, 2, 3, 4, 5] * 2

    def test_each_cursor_goes_on_right_there(self, node: Any, topic: str, filled: list[Any]) -> None:
        rows = node.rows("replay", topic)
        for number, row in enumerate(rows):
            cursor = f"cursor:{row['cursor']}"
            assert values(node.rows("replay", topic, "--from", cursor)) == values(rows[number + 1 :])
            assert values(node.rows("replay", topic, "--until", cursor)) == values(rows[: number + 1])

    def test_a_file_goes_back_in_by_publish(self, node: Any, topic: str, filled: list[Any], tmp_path: Path) -> None:
        path = tmp_path / "all.ndjson"
        (totals,) = node.rows("replay", topic, "--file", str(path))
        assert (totals["records"], totals["passes"]) == (6, 1)
        node.ok("publish", f"{topic}-copy", "--envelope", "--file", str(path))
        same = ("id", "key", "value", "timestamp", "headers")
        copied = node.read(f"{topic}-copy")
        assert sorted([record[name] for name in same] for record in copied) == sorted(
            [record[name] for name in same] for record in filled
        )
        assert node.call("replay", topic, "--file", str(path)).exit_code == 2

    def test_into_another_topic_and_into_itself(self, node: Any, topic: str, filled: list[Any]) -> None:
        (totals,) = node.rows("replay", topic, "--to", f"{topic}-new", "--times", "2", "--new-ids", "--new-times")
        assert totals["records"] == 12
        records = node.read(f"{topic}-new")
        assert sorted(values(records)) == sorted([0, 1, 2, 3, 4, 5] * 2)
        assert len({record["id"] for record in records} | {record["id"] for record in filled}) == 18
        assert min(record["timestamp"] for record in records) > 1_700_000_000_000
        # What a replay publishes is not part of its window, also where it publishes to what it reads.
        (totals,) = node.rows("replay", topic, "--to", topic, "--times", "2")
        assert totals["records"] == 12
        assert len(node.read(topic)) == 18

    def test_at_a_speed_it_gives_the_same_records(self, node: Any, topic: str, filled: list[Any]) -> None:
        assert values(node.rows("replay", topic, "--speed", "1000x")) == [0, 1, 2, 3, 4, 5]
        assert values(node.rows("replay", topic, "--speed", "original", "--pause-max", "1ms")) == [0, 1, 2, 3, 4, 5]

    def test_people_are_told_how_many_and_how_fast(self, node: Any, topic: str, filled: list[Any]) -> None:
        result = node.call("replay", topic, "--to", f"{topic}-x")
        assert result.exit_code == 0
        assert "6 records in" in result.stdout
        result = node.call("replay", topic)
        assert len(result.stdout.splitlines()) == 6
        assert "6 records in" in result.stderr

    @pytest.mark.parametrize(
        ("arguments", "exit_code", "says"),
        [
            (("--to", "x", "--file", "y"), 2, "one place"),
            (("--append",), 2, "--append needs"),
            (("--new-ids",), 2, "need --to"),
            (("--speed", "fast"), 2, "no speed"),
            (("--times", "0"), 2, "times"),
            (("--from", "id:5"), 2, "no message id"),
            (("--pause-max", "5 apples"), 2, "no length of time"),
            (("--from", "id:0192a1b2-c3d4-7000-8000-000000000001"), 2, "no record has the id"),
            (("--from", "offset:99"), 1, "offset"),
            (("--to", "no/topic"), 1, "topic"),
        ],
    )
    def test_refusals(self, node: Any, topic: str, arguments: tuple[str, ...], exit_code: int, says: str) -> None:
        node.ok("publish", topic, "x")
        result = node.call("replay", topic, *arguments)
        assert result.exit_code == exit_code, result.output
        assert says in result.stderr

    def test_ctrl_c_says_where_to_go_on(self, node: Any, topic: str, filled: list[Any], tmp_path: Path) -> None:
        """A second between records: the signal comes while it waits, after the first has arrived."""
        path = tmp_path / "part.ndjson"
        command = [sys.executable, "-m", "gateway.cli.main", "replay", topic, "--speed", "0.05", "--file", str(path)]
        with subprocess.Popen(command, env=os.environ | {"SPRAWL_HOME": str(node.home)}, stderr=subprocess.PIPE) as process:
            while not path.exists() or not path.stat().st_size:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
        assert process.returncode == 130
        told = re.search(rb"--from (cursor:\S+) --until (cursor:\S+)", errors)
        assert told is not None, errors
        rest = node.rows("replay", topic, "--from", told[1].decode(), "--until", told[2].decode())
        assert values([json.loads(line) for line in path.read_bytes().splitlines()] + rest) == [0, 1, 2, 3, 4, 5]
