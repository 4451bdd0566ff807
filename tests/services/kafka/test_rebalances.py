"""Groups whose members join, leave and die while records arrive, some of them while the others are still agreeing."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.companions.kafka.java import java_command
from tests.services.kafka.bootstrap import Bootstrap

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]

WAIT_S = 60
PARTITIONS = 6
SESSION_MS = 6_000  # the shortest that a group allows: who dies is missed for so long


class Member:
    """A member in a process of its own, and what it has told."""

    def __init__(self, command: list[str]) -> None:
        self.assigned: set[int] = set()
        self.values: list[int] = []
        self.said: list[str] = []
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line.strip())
            if line.startswith("{"):
                self._note(json.loads(line))

    def _note(self, event: dict[str, Any]) -> None:
        match event["name"]:
            case "partitions_assigned":
                self.assigned |= {place["partition"] if isinstance(place, dict) else place for place in event["partitions"]}
            case "partitions_revoked":
                self.assigned -= {place["partition"] if isinstance(place, dict) else place for place in event["partitions"]}
            case "records_consumed" if "values" in event:
                self.values += event["values"]
            case "record_data":
                self.values.append(int(event["value"]))

    def end(self, how: signal.Signals) -> None:
        """SIGKILL: it is missed after its session; SIGTERM: it leaves."""
        if self.alive:
            self._process.send_signal(how)
        self._process.wait(WAIT_S)
        self._listener.join(WAIT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Group:
    """One group over one topic, its living members, and all values that any member ever read."""

    def __init__(self, bootstrap: Bootstrap, folder: Path, protocol: str) -> None:
        self.name = self.topic = f"group-{uuid.uuid4().hex[:8]}"
        self.living: list[Member] = []
        self._dead: list[Member] = []
        self._bootstrap = bootstrap
        self._folder = folder
        self._protocol = protocol
        self._admin = AdminClient(bootstrap.librdkafka())
        self._admin.create_topics([NewTopic(self.topic, PARTITIONS, 1)])[self.topic].result(WAIT_S)

    def join(self, client: str) -> Member:
        member = Member(getattr(self, f"_{client.replace('-', '_')}")())
        self.living.append(member)
        return member

    def end(self, member: Member, how: signal.Signals) -> None:
        assert member.alive, member.said[-20:]
        member.end(how)
        self.living.remove(member)
        self._dead.append(member)

    def close(self) -> None:
        for member in self.living:
            member.end(signal.SIGKILL)

    def seen(self) -> set[int]:
        return {value for member in self.living + self._dead for value in list(member.values)}

    def agrees(self) -> bool:
        """Whether each partition is in the hands of one living member, as they themselves say, and all have some."""
        held = [partition for member in self.living for partition in list(member.assigned)]
        return sorted(held) == list(range(PARTITIONS)) and all(member.assigned for member in self.living)

    def described(self) -> list[set[int]]:
        found = self._admin.describe_consumer_groups([self.name])[self.name].result(WAIT_S)
        return [{place.partition for place in member.assignment.topic_partitions} for member in found.members]

    def lag(self) -> int:
        consumer = Consumer(self._bootstrap.librdkafka(group_id=self.name))
        places = [TopicPartition(self.topic, number) for number in range(PARTITIONS)]
        committed = sum(max(0, place.offset) for place in consumer.committed(places, timeout=WAIT_S))
        end = sum(consumer.get_watermark_offsets(place, timeout=WAIT_S, cached=False)[1] for place in places)
        consumer.close()
        return end - committed

    def report(self) -> str:
        lines = [
            f"{number}: alive={member.alive} {sorted(member.assigned)} {member.said[-6:]}"
            for number, member in enumerate(self.living)
        ]
        return "\n".join([*lines, f"seen {len(self.seen())}"])

    def _python(self, client: str, settings: dict[str, object]) -> list[str]:
        return [sys.executable, "-m", "tests.services.kafka.member", client, json.dumps(settings), self.topic]

    def _librdkafka(self) -> list[str]:
        settings = self._bootstrap.librdkafka(group_id=self.name, auto_offset_reset="earliest", enable_auto_commit=False)
        if self._protocol == "consumer":
            settings |= {"group.protocol": "consumer"}
        else:
            settings |= {"partition.assignment.strategy": self._protocol}
            settings |= {"session.timeout.ms": SESSION_MS, "heartbeat.interval.ms": 500}
        return self._python("librdkafka", settings)

    def _kafka_python(self) -> list[str]:
        settings = self._bootstrap.kafka_python(group_id=self.name, auto_offset_reset="earliest", enable_auto_commit=False)
        return self._python("kafka-python", settings | {"session_timeout_ms": SESSION_MS, "heartbeat_interval_ms": 500})

    def _java(self) -> list[str]:
        wanted = {"heartbeat.interval.ms": "500"} if self._protocol != "consumer" else {}
        settings = self._bootstrap.java_file(self._folder / f"{uuid.uuid4().hex}.properties", **wanted)
        arguments = ["--bootstrap-server", self._bootstrap.address, "--command-config", str(settings), "--verbose"]
        arguments += ["--topic", self.topic, "--group-id", self.name, "--group-protocol", self._protocol_word()]
        if self._protocol == "cooperative-sticky":
            arguments += ["--assignment-strategy", "org.apache.kafka.clients.consumer.CooperativeStickyAssignor"]
        if self._protocol != "consumer":
            arguments += ["--session-timeout", str(SESSION_MS)]
        return java_command("org.apache.kafka.tools.VerifiableConsumer", *arguments)

    def _protocol_word(self) -> str:
        return "CONSUMER" if self._protocol == "consumer" else "CLASSIC"


class Feed:
    """Numbers, one after the other, until it is stopped; `sent` are acknowledged."""

    def __init__(self, bootstrap: Bootstrap, topic: str) -> None:
        self._producer = Producer(bootstrap.librdkafka(enable_idempotence=True, linger_ms=5))
        self._topic = topic
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.count = 0

    def _run(self) -> None:
        while not self._stopping.wait(0.01):
            for _ in range(5):
                self._producer.produce(self._topic, value=str(self.count).encode(), partition=self.count % PARTITIONS)
                self.count += 1
            self._producer.poll(0)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(WAIT_S)
        assert self._producer.flush(WAIT_S) == 0


def until(true: Callable[[], bool], group: Group) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, group.report()
        time.sleep(0.05)


@contextmanager
def opened(bootstrap: Bootstrap, folder: Path, protocol: str) -> Iterator[Group]:
    group = Group(bootstrap, folder, protocol)
    try:
        yield group
    finally:
        group.close()


def settle(group: Group, feed: Feed) -> None:
    """All of it was read by somebody and committed, and each partition has one member, as the members and the node agree."""
    until(lambda: group.seen() == set(range(feed.count)), group)
    until(lambda: group.lag() == 0, group)
    until(group.agrees, group)
    until(lambda: sorted(map(sorted, group.described())) == sorted(sorted(member.assigned) for member in group.living), group)


def die_while_others_join(group: Group, client: str, chance: random.Random) -> None:
    """A member joins; another dies at some moment of the rebalance that follows."""
    victim = chance.choice(group.living)
    newcomer = group.join(client)
    until(lambda: bool(newcomer.said), group)
    time.sleep(chance.random() * 0.4)
    group.end(victim, signal.SIGKILL)


@pytest.mark.parametrize(
    ("protocol", "clients"),
    [
        ("range", ["librdkafka", "kafka-python", "java", "librdkafka"]),
        ("cooperative-sticky", ["librdkafka", "java", "librdkafka", "librdkafka"]),
        ("consumer", ["librdkafka", "java", "librdkafka", "java"]),
    ],
)
def test_no_record_is_missed_while_members_join_leave_and_die(
    bootstrap: Bootstrap, tmp_path: Path, protocol: str, clients: list[str]
) -> None:
    first, second, third, fourth = clients
    with opened(bootstrap, tmp_path, protocol) as group:
        with Feed(bootstrap, group.topic) as feed:
            member = group.join(first)
            until(group.agrees, group)
            group.join(second)
            until(group.agrees, group)
            die_while_others_join(group, third, random.Random(protocol))
            until(group.agrees, group)
            member = group.join(fourth)
            until(group.agrees, group)
            group.end(member, signal.SIGTERM)
            until(group.agrees, group)
        settle(group, feed)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["range", "cooperative-sticky", "consumer"])
def test_no_record_is_missed_in_forty_deaths_and_departures(bootstrap: Bootstrap, tmp_path: Path, protocol: str) -> None:
    chance = random.Random(protocol)
    with opened(bootstrap, tmp_path, protocol) as group:
        with Feed(bootstrap, group.topic) as feed:
            for _ in range(3):
                group.join("librdkafka")
            until(group.agrees, group)
            for _ in range(20):
                die_while_others_join(group, "librdkafka", chance)
                group.end(chance.choice(group.living), signal.SIGTERM)
                group.join("librdkafka")
                if chance.random() < 0.5:
                    until(group.agrees, group)
        settle(group, feed)
