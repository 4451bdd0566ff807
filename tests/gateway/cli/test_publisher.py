"""Batches: how records are gathered, and what is known when one of them fails."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.client import Retry
from gateway.cli.failures import Refused, Unreachable, Unusable
from gateway.cli.inputs import Line
from gateway.cli.publisher import (
    BATCH_BYTES_MAX,
    BATCH_RECORDS_MAX,
    QUEUE_LINES_MAX,
    Batch,
    Publisher,
    batches,
    lingering_batches,
)


def lines(count: int, size: int = 2) -> Iterator[Line]:
    return (Line(b"x" * size, number, number * size) for number in range(1, count + 1))


class FailingNode:
    """Answers as told, then acknowledges."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.bodies = list(failures), []

    def publish(self, topic: str, body: bytes, acks: str) -> list[dict[str, Any]]:
        self.bodies.append(body)
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure
        return [{} for _ in body.split(b"\n")]


def publisher(node: FailingNode, retries: int = 3) -> tuple[Publisher, list[float]]:
    slept: list[float] = []
    return Publisher(node, "orders", "durable", Retry(retries, slept.append)), slept  # type: ignore[arg-type]


class TestBatches:
    @given(st.integers(0, 3 * BATCH_RECORDS_MAX))
    def test_no_record_is_lost_and_no_batch_is_too_long(self, count: int) -> None:
        made = list(batches(lines(count)))
        assert [line.number for batch in made for line in batch.lines] == list(range(1, count + 1))
        assert all(0 < len(batch.lines) <= BATCH_RECORDS_MAX for batch in made)

    def test_a_batch_is_bounded_in_bytes(self) -> None:
        made = list(batches(lines(5, BATCH_BYTES_MAX // 2)))
        assert [len(batch.lines) for batch in made] == [1, 1, 1, 1, 1]
        assert [len(batch.lines) for batch in batches(lines(4, BATCH_BYTES_MAX // 2 - 1))] == [2, 2]

    def test_a_record_above_the_bound_goes_alone_and_the_node_says_no(self) -> None:
        assert [len(batch.lines) for batch in batches(lines(2, BATCH_BYTES_MAX + 1))] == [1, 1]

    def test_a_body_is_ndjson(self) -> None:
        (batch,) = batches([Line(b"{}", 1, 3), Line(b"[]", 2, 6)])
        assert batch.body() == b"{}\n[]"


class TestLingering:
    def test_what_is_there_leaves_while_the_source_pauses(self) -> None:
        go_on = threading.Event()

        def source() -> Iterator[Line]:
            yield from lines(3)
            assert go_on.wait(30)
            yield from lines(2)

        made = lingering_batches(source())
        taken = []
        while len(taken) < 3:  # the source is paused: these can only have left by lingering
            taken += next(made).lines
        go_on.set()
        assert sum(len(batch.lines) for batch in made) == 2
        assert len(taken) == 3

    def test_a_fast_source_waits_for_the_node(self) -> None:
        drawn = []

        def source() -> Iterator[Line]:
            for line in lines(10 * QUEUE_LINES_MAX):
                drawn.append(line.number)
                yield line

        made = lingering_batches(source())
        first = next(made)
        assert len(first.lines) <= BATCH_RECORDS_MAX
        assert len(drawn) <= QUEUE_LINES_MAX + BATCH_RECORDS_MAX + 2  # the queue, the batch, one in each hand
        assert sum(len(batch.lines) for batch in made) + len(first.lines) == 10 * QUEUE_LINES_MAX

    def test_an_error_of_the_source_comes_after_what_was_good(self) -> None:
        def source() -> Iterator[Line]:
            yield from lines(2)
            raise Unusable("line 3 is damaged")

        made = lingering_batches(source())
        taken: list[Line] = []
        while len(taken) < 2:
            taken += next(made).lines
        with pytest.raises(Unusable, match="line 3"):
            next(made)

    def test_an_empty_source_has_no_batch(self) -> None:
        assert list(lingering_batches(iter(()))) == []


class TestFailures:
    def test_503_is_sent_again_with_the_same_bytes(self) -> None:
        node = FailingNode(Refused({"status": 503, "retry_after_ms": 1500}), Refused({"status": 429}))
        sending, slept = publisher(node)
        for batch in batches(lines(2)):
            sending.send(batch)
        assert node.bodies == [b"xx\nxx"] * 3
        assert len(slept) == 2
        assert slept[0] >= 1.5
        assert (sending.totals.records, sending.totals.resent) == (2, 2)

    def test_attempts_are_bounded(self) -> None:
        node = FailingNode(*[Refused({"status": 503})] * 10)
        sending, slept = publisher(node, retries=4)
        with pytest.raises(Refused):
            sending.send(next(batches(lines(1))))
        assert (len(node.bodies), len(slept)) == (5, 4)

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 500])
    def test_what_will_not_change_is_not_sent_again(self, status: int) -> None:
        node = FailingNode(Refused({"status": status}))
        with pytest.raises(Refused):
            publisher(node)[0].send(next(batches(lines(1))))
        assert len(node.bodies) == 1

    def test_a_node_that_never_answered_is_not_asked_again(self) -> None:
        node = FailingNode(Unreachable("no answer"))
        with pytest.raises(Unreachable):
            publisher(node)[0].send(next(batches(lines(1))))
        assert len(node.bodies) == 1

    def test_a_node_that_went_away_is(self) -> None:
        node = FailingNode(None, Unreachable("no answer"))  # type: ignore[arg-type]
        sending, _ = publisher(node)
        for batch in batches(lines(BATCH_RECORDS_MAX + 1)):
            sending.send(batch)
        assert (len(node.bodies), sending.totals.records) == (3, BATCH_RECORDS_MAX + 1)

    def test_a_failure_says_what_had_been_acknowledged(self) -> None:
        node = FailingNode(None, Refused({"status": 400, "detail": "no"}))  # type: ignore[arg-type]
        sending, _ = publisher(node)
        first, second = batches(lines(BATCH_RECORDS_MAX + 1))
        sending.send(first)
        with pytest.raises(Refused) as refusal:
            sending.send(second)
        assert f"acknowledged before: {BATCH_RECORDS_MAX} records, to line {BATCH_RECORDS_MAX}" in refusal.value.detail


def test_an_empty_batch_takes_any_record() -> None:
    assert Batch().takes(Line(b"x" * (BATCH_BYTES_MAX + 1), 1, 0))
