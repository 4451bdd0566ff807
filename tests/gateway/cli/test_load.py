"""A load run against a real node, and what a stalled one looks like."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from gateway.cli.connection import Connection
from gateway.cli.load_generator import Load, Outcome, Plan
from gateway.cli.load_targets import Answer
from tests.gateway.cli.conftest import Node

PLAN = Plan(protocol="rest", rate=200.0, seconds=0.5, records=1, size=50, keys=3, connections=2, subscribers=0)


class StalledOnce:
    """Acknowledges at once, but for the first request, which takes as long as told."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self.sent = 0

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def send(self, records: list[dict[str, str]]) -> None:
        self.sent += 1
        if self.sent == 1:
            await asyncio.sleep(self._stall_s)


class Refusing(StalledOnce):
    async def send(self, records: list[dict[str, str]]) -> None:
        raise Answer("429")


def quiet(took_s: float, outcome: Outcome) -> None:
    pass


async def run(target: object, plan: Plan = PLAN) -> Outcome:
    return await Load(plan, Connection("http://127.0.0.1:1"), "t", lambda: target, quiet).run()  # type: ignore[arg-type,return-value]


async def test_a_stall_shows_in_every_request_that_was_due_meanwhile():
    """Closed-loop tools show one slow request here: with one connection nothing else was sent during the stall."""
    plan = Plan(protocol="rest", rate=200.0, seconds=1.0, records=1, size=50, keys=3, connections=1, subscribers=0)
    outcome = await run(StalledOnce(0.7), plan)
    assert outcome.acknowledged.count + outcome.behind == 200
    assert outcome.acknowledged.percentile(50) > 0.01
    assert outcome.acknowledged.longest_s >= 0.7


async def test_refusals_are_counted_by_reason_and_are_no_latencies():
    outcome = await run(Refusing(0))
    assert outcome.refused["429"] == 100
    assert outcome.acknowledged.count == 0


async def test_what_no_connection_could_send_is_told():
    outcome = await run(
        StalledOnce(5.0), Plan(**{**{name: getattr(PLAN, name) for name in PLAN.__struct_fields__}, "connections": 1})
    )
    assert outcome.behind == 99


@pytest.mark.parametrize("protocol", ["rest", "websocket"])
def test_a_run_against_a_node(node: Node, tmp_path: Path, protocol: str) -> None:
    report = tmp_path / "load.md"
    flags = (
        "--protocol",
        protocol,
        "--rate",
        "40",
        "--seconds",
        "1",
        "--records",
        "5",
        "--subscribers",
        "1",
        "--report",
        str(report),
    )
    (found,) = node.rows("load", *flags)
    assert found["records"] == 200
    assert found["refused"] == {}
    assert found["acknowledged"]["count"] == 40
    assert found["delivered"]["count"] == 200
    assert found["acknowledged"]["p50_ms"] <= found["acknowledged"]["p99_ms"] <= found["acknowledged"]["max_ms"]
    assert "| acknowledged | 200 records" in report.read_text()
    assert not [topic for topic in node.rows("topics", "list") if topic["name"].startswith("sprawl-load-")]


def test_an_existing_topic_is_kept(node: Node, topic: str) -> None:
    node.ok("topics", "create", topic)
    node.ok("load", "--topic", topic, "--rate", "20", "--seconds", "0.5")
    assert len(node.read(topic)) == 10


def test_refused_requests_end_in_a_failure_that_names_the_reason(node: Node, topic: str) -> None:
    result = node.call("load", "--topic", "not/legal", "--rate", "10", "--seconds", "0.3", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stderr)["error"]["detail"]


def test_the_report_does_not_wait_for_a_subscriber_that_gets_nothing():
    began = time.monotonic()
    outcome = asyncio.run(run(StalledOnce(0)))
    assert outcome.acknowledged.count == 100
    assert outcome.delivered.count == 0
    assert began > 0
