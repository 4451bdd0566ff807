"""A few of the sequences of `kafka_differential.py`, every day; and whether it would find a difference at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.companions.kafka.apache import ApacheKafka
from tests.conformance.kafka_answers import comparable, differences
from tests.conformance.kafka_differential import run, started_sprawl, warm
from tests.conformance.kafka_side import Side

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]  # a JVM starts on a busy machine
SEQUENCES = 10


@pytest.fixture
def sides(apache_kafka: ApacheKafka) -> Iterator[tuple[Side, Side]]:
    with ExitStack() as stack:
        yield Side("Kafka", apache_kafka.bootstrap), Side("Sprawl", *started_sprawl(stack))


async def test_sprawl_answers_as_kafka_does(sides: tuple[Side, Side]) -> None:
    kafka, sprawl = sides
    await warm(kafka)
    await warm(sprawl)
    report = await run(kafka, sprawl, range(SEQUENCES))
    print(report)
    assert report.findings == [], str(report)
    assert report.sequences == SEQUENCES
    assert sum(report.calls.values()) >= SEQUENCES * 40
    assert min(report.joined) >= 2  # members of each group


class Lying(Side):
    """Says of every fetched high watermark one more than there is."""

    async def run(self, step: Any) -> Any:
        answers = await super().run(step)
        for ask, answer in zip(step, answers, strict=True):
            if ask.api == "fetch":
                for topic in answer["responses"]:
                    for partition in topic["partitions"]:
                        partition["high_watermark"] += 1
        return answers


async def test_a_lie_is_found(apache_kafka: ApacheKafka) -> None:
    with ExitStack() as stack:
        kafka, liar = Side("Kafka", apache_kafka.bootstrap), Lying("a liar", *started_sprawl(stack))
        await warm(kafka)
        await warm(liar)
        report = await run(kafka, liar, range(3), findings_max=1)
    assert [finding.difference.path for finding in report.findings[:1]] == ["$.responses[0].partitions[0].high_watermark"]


def test_order_and_words_are_no_difference() -> None:
    one = {"topics": [{"name": "a", "error_code": 3, "error_message": "none"}, {"name": "b", "error_code": 0}]}
    other = {"topics": [{"name": "b", "error_code": 0}, {"name": "a", "error_code": 3, "error_message": "not there"}]}
    assert list(differences("x", 0, comparable(one), comparable(other))) == []
    other["topics"][1]["error_code"] = 5
    (found,) = differences("x", 0, comparable(one), comparable(other))
    assert (found.path, found.kafka, found.sprawl) == ("$.topics[0].error_code", 3, 5)
