"""Calls of a group of the consumer protocol (KIP-848), whose members the broker tells what to read."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from tests.conformance.kafka_script import MEMBERS, UNSETTLED, Script, Steps, about
from tests.conformance.kafka_side import Ask, Side

JOIN, LEAVE, LEAVE_FOR_A_WHILE = 0, -1, -2
REBALANCE_MS = 30_000
STATIC = 3  # the one that has an instance id
ASSIGNOR = "range"  # the same partitions to the same members, whoever computes it
HEARTBEATS_MAX = 6  # of each member, until all have what they shall have


class ConsumerCalls(Script):
    """Members' ids are their own, so they are the same on both sides; what a member owns is what it was told there."""

    def look_after_consumers(self) -> Steps:
        for member in MEMBERS:
            if len(self.consumers) < 2 and member not in self.consumers:
                yield from self.consumer_join(member)
        member = self.rng.choice(MEMBERS)
        if member not in self.consumers:
            yield from self.consumer_join(member)
            return
        actions: list[Callable[[int], Steps]] = [
            self.consumer_beat, self.consumer_beat, self.consumer_settle, self.consumer_settle, self.consumer_beat_wrongly,
            self.consumer_beat_wrongly, self.consumer_subscribe, self.consumer_leave, self.consumer_commit,
            self.consumer_commit, self.consumer_fetch_offsets, self.consumer_join,
        ]  # fmt: skip
        yield from self.rng.choice(actions)(member)
        if self.rng.random() < 0.4:
            yield from self.consumer_describe()

    def _consumer_id(self, member: int) -> str:
        return f"c{member}-{self.tag}" if member != STATIC else f"c{member}-{self.tag}-{self.lives}"

    def _wanted(self) -> list[str]:
        names = self.rng.sample(list(self.topics), min(len(self.topics), self.rng.choice([1, 1, 2, 3])))
        return [*names, f"d{self.tag}-none"] if self.rng.random() < 0.1 else names

    def _beat(self, member: int, epoch: int, **said: Any) -> Ask:
        static = member == STATIC
        owned = said.pop("owned", True)

        def fields(side: Side) -> Mapping[str, Any]:
            held = side.id(f"owned {member}", ()) if owned is True else owned
            return {
                "group_id": self.consumer_group,
                "member_id": self._consumer_id(member),
                "member_epoch": epoch,
                "instance_id": f"k{self.tag}" if static else None,
                "rack_id": None,
                "rebalance_timeout": -1,
                "subscribed_topic_names": None,
                "subscribed_topic_regex?": None,
                "server_assignor": None,
                "topic_partitions": None
                if held is None
                else [{"topic_id": uuid.UUID(topic_id), "partitions": list(partitions)} for topic_id, partitions in held],
                **said,
            }

        return self._ask(
            "consumer_group_heartbeat", fields, member=member, binds={f"owned {member}": _told_to_own}, again=UNSETTLED
        )

    def _beaten(self, member: int, ask: Ask) -> Steps:
        (answer,) = yield [ask]
        if answer["error_code"] == 0:
            self.consumers[member] = answer["member_epoch"]

    def consumer_join(self, member: int) -> Steps:
        """For the first time, or again without having left: it begins with nothing."""
        if member == STATIC:
            if member in self.consumers:  # Kafka refuses it (111), Sprawl takes it for one whose answer was lost
                return
            self.lives += 1
        yield from self._beaten(
            member,
            self._beat(
                member,
                JOIN,
                rebalance_timeout=REBALANCE_MS,
                subscribed_topic_names=self._wanted(),
                server_assignor=ASSIGNOR,
                owned=(),
            ),
        )

    def consumer_beat(self, member: int) -> Steps:
        said: dict[str, Any] = self.rng.choice([{}, {}, {"owned": None}, {"server_assignor": ASSIGNOR}])
        yield from self._beaten(member, self._beat(member, self.consumers[member], **said))

    def consumer_settle(self, member: int) -> Steps:
        """All go towards what they shall have, until they are there."""
        for _ in range(HEARTBEATS_MAX):
            before = dict(self.consumers)
            for one in list(self.consumers):
                yield from self._beaten(one, self._beat(one, self.consumers[one]))
            if before == self.consumers:
                break
        yield from self.consumer_describe()

    def consumer_subscribe(self, member: int) -> Steps:
        yield from self._beaten(member, self._beat(member, self.consumers[member], subscribed_topic_names=self._wanted()))

    def consumer_beat_wrongly(self, member: int) -> Steps:
        epoch = self.consumers[member]
        epoch, said = self.rng.choice(
            [
                (epoch + 5, {}),
                (max(1, epoch - 1), {"owned": None}),
                (max(1, epoch - 1), {}),
                (epoch, {"member_id": f"nobody-{self.tag}"}),
                (epoch, {"member_id": ""}),
                (epoch, {"group_id": f"none-{self.tag}"}),
                (epoch, {"group_id": ""}),
                (-3, {}),
                (epoch, {"server_assignor": "by-colour"}),
                (epoch, {"rack_id": ""}),
                (epoch, {"instance_id": ""}),
                (epoch, {"instance_id": f"other-{self.tag}"}),
                (JOIN, {"rebalance_timeout": REBALANCE_MS, "owned": ()}),
                (JOIN, {"subscribed_topic_names": ["a"], "owned": ()}),
                (JOIN, {"rebalance_timeout": REBALANCE_MS, "subscribed_topic_names": ["a"], "owned": None}),
                (LEAVE_FOR_A_WHILE, {"instance_id": None}),
            ]
        )
        ask = self._beat(member, epoch, **said)
        (answer,) = yield [ask]
        if answer["error_code"] == 0 and epoch != LEAVE_FOR_A_WHILE:
            self.consumers[member] = answer["member_epoch"]
        elif answer["error_code"] == 0:
            del self.consumers[member]

    def consumer_leave(self, member: int) -> Steps:
        """A static one may come back, as a new process."""
        epoch = self.rng.choice([LEAVE, LEAVE_FOR_A_WHILE]) if member == STATIC else LEAVE
        (answer,) = yield [self._beat(member, epoch, owned=None)]
        if answer["error_code"] == 0:
            del self.consumers[member]

    def consumer_describe(self) -> Steps:
        names = [self.consumer_group, *self.rng.sample([self.group, f"none-{self.tag}"], self.rng.choice([0, 0, 1, 2]))]
        fields = {"group_ids": names, "include_authorized_operations": False}
        yield [self._ask("consumer_group_describe", fields, again=UNSETTLED)]

    def consumer_commit(self, member: int) -> Steps:
        topic, version = self._topic(), self.version_of("offset_commit", 9)
        epoch = self.consumers[member] + self.rng.choice([0, 0, 0, 5])
        who = self._consumer_id(member) if self.rng.random() < 0.9 else "nobody"
        wanted = {
            "partition_index": self._partition(topic),
            "committed_offset": self.rng.randrange(100),
            "committed_leader_epoch": -1,
            "committed_metadata": "",
        }
        yield [
            self._ask(
                "offset_commit",
                lambda side: {
                    "group_id": self.consumer_group,
                    "generation_id_or_member_epoch": epoch,
                    "member_id": who,
                    "group_instance_id": None,
                    "topics": [{**about("offset_commit", version, topic, side), "partitions": [wanted]}],
                },
                version=version,
                again=UNSETTLED,
            )
        ]

    def consumer_fetch_offsets(self, member: int) -> Steps:
        topic, version = self._topic(), self.version_of("offset_fetch", 9)
        partition = self._partition(topic)
        said: list[tuple[str | None, int]] = [
            (self._consumer_id(member), self.consumers[member]),
            (self._consumer_id(member), self.consumers[member] + 1),
            ("nobody", 1),
            (None, -1),
        ]
        member_id, epoch = self.rng.choice(said)

        def fields(side: Side) -> Mapping[str, Any]:
            named = {**about("offset_fetch", version, topic, side), "partition_indexes": [partition]}
            group = {"group_id": self.consumer_group, "member_id": member_id, "member_epoch": epoch, "topics": [named]}
            return {"groups": [group], "require_stable": True}

        yield [self._ask("offset_fetch", fields, version=version, again=UNSETTLED)]

    def leave_consumers(self) -> Steps:
        for member in list(self.consumers):
            yield [self._beat(member, LEAVE, owned=None)]
        self.consumers.clear()


def _told_to_own(told: dict[str, Any]) -> Any:
    """In a form that can be kept; None where nothing new was told."""
    if told["assignment"] is None:
        return None
    return tuple((one["topic_id"], tuple(one["partitions"])) for one in told["assignment"]["topic_partitions"])
