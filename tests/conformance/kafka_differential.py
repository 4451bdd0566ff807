"""The same random sequences of calls against Sprawl and a real Apache Kafka: do they answer the same?

    python -m tests.conformance.kafka_differential [--sequences 500] [--seed 0]
                                                   [--kafka HOST:PORT] [--sprawl HOST:PORT --token TOKEN]

Without addresses both are started. Prints how often each API was called in each version, how often each accepted difference was
met (`kafka_answers.ACCEPTED`), and every other difference with the seed and the step that shows it; the third ends its sequence.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from kio.schema.index import api_key_map

from tests.companions.kafka.apache import ApacheKafka
from tests.conformance.kafka_answers import ACCEPTED, Difference, comparable, differences, opened
from tests.conformance.kafka_script import UNSETTLED, Answers, Step
from tests.conformance.kafka_sequences import Sequence
from tests.conformance.kafka_side import Side, codes
from tests.services.node_process import NodeProcess, free_port

FINDINGS_MAX = 3
"""Of one sequence: what follows a difference may follow from it."""


class Finding(NamedTuple):
    seed: int
    step: int
    difference: Difference
    request: Any

    @property
    def kind(self) -> tuple[str, ...]:
        """What findings of one cause have alike."""
        found = self.difference
        return found.api, re.sub(r"\[\d+\]", "[]", found.path), *(repr(one)[:40] for one in (found.kafka, found.sprawl))

    def __str__(self) -> str:
        return f"seed {self.seed}, step {self.step}: {self.difference}\n    asked {self.request}"


class Report:
    def __init__(self) -> None:
        self.sequences = 0
        self.calls: Counter[tuple[str, int]] = Counter()
        self.accepted: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self.joined: Counter[int] = Counter()

    def __str__(self) -> str:
        by_api: dict[str, list[str]] = {}
        for (api, version), count in sorted(self.calls.items()):
            by_api.setdefault(api, []).append(f"v{version}: {count}")
        lines = [f"{self.sequences} sequences, {sum(self.calls.values())} calls of {len(by_api)} APIs"]
        lines += [f"  {api}  {', '.join(versions)}" for api, versions in by_api.items()]
        lines += [f"{count} sequences with {members} members of the group" for members, count in sorted(self.joined.items())]
        lines += [f"accepted {count} times: {reason}" for reason, count in sorted(self.accepted.items())]
        alike: dict[tuple[str, ...], list[Finding]] = {}
        for finding in self.findings:
            alike.setdefault(finding.kind, []).append(finding)
        lines += [f"DIFFERENCE met {len(same)} times, first with {same[0]}" for same in alike.values()]
        return "\n".join(lines)


def common_versions(kafka: Mapping[int, tuple[int, int]], sprawl: Mapping[int, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """What both serve; Produce is advertised from 0 on and served from 3 on, by both."""
    found = {}
    for key, (low, high) in kafka.items():
        if key in sprawl and key in api_key_map:
            both = max(low, sprawl[key][0], 3 if key == 0 else 0), min(high, sprawl[key][1])
            if both[0] <= both[1]:
                found[api_key_map[key]] = both
    return found


async def run_sequence(seed: int, kafka: Side, sprawl: Side, report: Report, started_ms: int) -> None:
    versions = common_versions(await kafka.open(), await sprawl.open())
    sequence = Sequence(seed, versions, started_ms)
    steps = sequence.steps()
    report.sequences += 1
    step, number, found_here = next(steps), 0, 0
    while True:
        ours, theirs = await asyncio.gather(sprawl.run(step), kafka.run(step), return_exceptions=True)
        for ask in step:
            report.calls[ask.api, ask.version] += 1
        found = _compare(step, kafka, theirs, sprawl, ours, report)
        if found is not None:
            ask, difference = found
            report.findings.append(Finding(seed, number, difference, _short(ask.fields(sprawl))))
            found_here += 1
            if found_here >= FINDINGS_MAX or isinstance(theirs, BaseException) or isinstance(ours, BaseException):
                return
        assert not isinstance(theirs, BaseException)
        try:
            step = steps.send(theirs)
        except StopIteration:
            break
        number += 1
    report.joined[len(sequence.seen)] += 1


def _compare(step: Step, kafka: Side, theirs: Any, sprawl: Side, ours: Any, report: Report) -> tuple[Any, Difference] | None:
    for answers in (theirs, ours):
        if isinstance(answers, BaseException):
            kinds = tuple(repr(one) if isinstance(one, BaseException) else "answers" for one in (theirs, ours))
            return step[0], Difference(step[0].api, step[0].version, "$", *kinds)
    one, other = _judged(step, kafka, theirs), _judged(step, sprawl, ours)
    for ask, first, second in zip([*step, step[0]], one, other, strict=True):
        for difference in differences(ask.api, ask.version, first, second):
            accepted = next((rule for rule in ACCEPTED if rule.holds(difference)), None)
            if accepted is None:
                return ask, difference
            report.accepted[accepted.reason] += 1
    return None


def _judged(step: Step, side: Side, answers: Answers) -> list[Any]:
    """Each answer made comparable, and for all together who is in the group, which one of them, the leader, is told."""
    judged, members = [], []
    for ask, answer in zip(step, answers, strict=True):
        plain = side.plain(opened(ask.look(answer)))
        if ask.api == "join_group" and answer["error_code"] == 0:
            members += plain.pop("members")
            assert plain.pop("leader") in side.members(), answer
        judged.append(comparable(plain))
    return [*judged, comparable(members)]


def _short(value: Any) -> str:
    return json.dumps(value, default=lambda one: f"{len(one)} bytes" if isinstance(one, bytes) else str(one))[:600]


async def run(kafka: Side, sprawl: Side, seeds: range, *, findings_max: int = 1_000) -> Report:
    report, started_ms = Report(), int(time.time() * 1000)
    try:
        for seed in seeds:
            await run_sequence(seed, kafka, sprawl, report, started_ms)
            if report.sequences % 25 == 0:
                print(f"{report.sequences} sequences, {len(report.findings)} differences", file=sys.stderr, flush=True)
            if len(report.findings) >= findings_max:
                break
    finally:
        await kafka.close()
        await sprawl.close()
    return report


async def warm(side: Side) -> None:
    """Internal topics are made when they are first asked for. The first producer id may be 0, which refusals tell as well."""
    await side.open()
    for key_type, key in ((0, "warm"), (1, "warm")):
        for _ in range(200):
            told = await side.admin("find_coordinator", 3, key=key, key_type=key_type)
            if told["error_code"] == 0:
                break
            await asyncio.sleep(0.1)
    unknown = {"name": "none", "partitions": [{"partition_index": 0, "committed_offset": 0, "committed_metadata": ""}]}
    for _ in range(200):
        told = await side.admin(
            "offset_commit",
            2,
            group_id="warm",
            generation_id_or_member_epoch=-1,
            member_id="",
            retention_time=-1,
            topics=[unknown],
        )
        if not codes(told) & UNSETTLED:
            break
        await asyncio.sleep(0.1)
    for _ in range(200):
        told = await side.admin("init_producer_id", 1, transactional_id=None, transaction_timeout=60_000)
        if told["error_code"] == 0:
            break
        await asyncio.sleep(0.1)
    await side.close()


def started_kafka(stack: ExitStack) -> str:
    """Its first rebalances wait for nobody: whoever asks alone is not to wait three seconds in each sequence."""
    home = Path(stack.enter_context(TemporaryDirectory()))
    return stack.enter_context(ApacheKafka(home / "kafka", {"auto.create.topics.enable": "false"})).bootstrap


def started_sprawl(stack: ExitStack) -> tuple[str, str]:
    home, port = Path(stack.enter_context(TemporaryDirectory())), free_port()
    settings = {
        "listeners.kafka.port": port,
        "listeners.kafka.plain": "true",
        "groups.initial_rebalance_delay_ms": 0,
        "groups.consumer_refresh_ms": 0,
    }
    node = stack.enter_context(NodeProcess(home / "node", **settings))
    return f"127.0.0.1:{port}", node.token


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kafka")
    parser.add_argument("--sprawl")
    parser.add_argument("--token")
    given = parser.parse_args()
    with ExitStack() as stack:
        kafka = Side("Kafka", given.kafka or started_kafka(stack))
        sprawl = Side("Sprawl", *((given.sprawl, given.token) if given.sprawl else started_sprawl(stack)))

        async def both() -> Report:
            await warm(kafka)
            await warm(sprawl)
            return await run(kafka, sprawl, range(given.seed, given.seed + given.sequences))

        report = asyncio.run(both())
    print(report)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
