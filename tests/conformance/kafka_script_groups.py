"""Calls of consumer groups."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from tests.conformance.kafka_script import (
    MEMBER_ID_REQUIRED,
    MEMBERS,
    SESSION_MS,
    UNSETTLED,
    Answers,
    Script,
    Steps,
    about,
)
from tests.conformance.kafka_side import Ask, Side


class GroupCalls(Script):
    def join(self) -> Steps:
        """A member more, or one again: those that are there come along."""
        member = self.rng.choice(MEMBERS)
        if member not in self.joined:
            (told,) = yield [self._join(member)]
            if told["error_code"] != MEMBER_ID_REQUIRED:
                return
        others = [other for other in self.joined if other != member]
        step = [self._join(member)]
        if others:
            step += [self._notice(others[0]), *[self._join(other) for other in others]]
        answers = yield step
        self._remember([member, *others], [answers[0], *answers[2:]])
        yield from self._sync()

    def _remember(self, members: list[int], answers: Answers) -> None:
        for member, told in zip(members, answers, strict=True):
            if told["error_code"] == 0:
                self.joined[member] = told["generation_id"]
                self.seen.add(member)

    def _join(self, member: int) -> Ask:
        self.joins += 1
        # A member that says something new is a rebalance, whoever leads the group.
        metadata = subscription(next(iter(self.topics), "none"), b"join %d" % self.joins)
        return self._ask(
            "join_group",
            lambda side: {
                "group_id": self.group,
                "session_timeout": SESSION_MS,
                "rebalance_timeout?": SESSION_MS,
                "member_id": side.id(f"member:{member}", ""),
                "group_instance_id?": None,
                "protocol_type": "consumer",
                "protocols": [{"name": "range", "metadata": metadata}, {"name": "roundrobin", "metadata": metadata}],
                "reason?": "why not",
            },
            version=self.version_of("join_group", 4),
            member=member,
            binds={f"member:{member}": lambda told: told["member_id"], "leader": lambda told: told["leader"]},
            again=UNSETTLED,
        )

    def _sync(self) -> Steps:
        generations = set(self.joined.values())
        if len(generations) != 1:
            return
        (generation,) = generations
        members = list(self.joined)

        def fields(member: int) -> Callable[[Side], Mapping[str, Any]]:
            def resolve(side: Side) -> Mapping[str, Any]:
                own = side.id(f"member:{member}")
                shares = [{"member_id": side.id(f"member:{one}"), "assignment": b"share %d" % one} for one in members]
                return {
                    "group_id": self.group,
                    "generation_id": generation,
                    "member_id": own,
                    "group_instance_id?": None,
                    "protocol_type?": "consumer",
                    "protocol_name?": "range",
                    "assignments": shares if side.id("leader") == own else [],
                }

            return resolve

        self.rng.shuffle(members)
        yield [self._ask("sync_group", fields(member), member=member) for member in members]

    def _heartbeat(self, member: int, *, through: int | None = None, wrong: bool = False) -> Ask:
        generation = self.joined.get(member, 1) + (1 if wrong else 0)
        return self._ask(
            "heartbeat",
            lambda side: {
                "group_id": self.group,
                "generation_id": generation,
                "member_id": side.id(f"member:{member}", "nobody"),
                "group_instance_id?": None,
            },
            member=member if through is None else through,
        )

    def _notice(self, member: int) -> Ask:
        """A member hears of the rebalance, once the join before has come to be known, and before anybody joins again."""
        return self._heartbeat(member, through=0)._replace(until=lambda told: told["error_code"] != 0, alone=True)

    def heartbeat(self) -> Steps:
        yield [self._heartbeat(self.rng.choice(MEMBERS), wrong=self.rng.random() < 0.2)]

    def leave(self) -> Steps:
        if not self.joined:
            return
        member = self.rng.choice(list(self.joined))
        yield [self._leave(member)]
        del self.joined[member]
        if self.joined:  # the others notice, and come together again
            others = list(self.joined)
            yield [self._heartbeat(others[0])]
            answers = yield [self._join(other) for other in others]
            self._remember(others, answers)
            yield from self._sync()

    def _leave(self, member: int) -> Ask:
        low, high = self.versions["leave_group"]
        version = self.rng.randint(low, high)

        def fields(side: Side) -> Mapping[str, Any]:
            own = side.id(f"member:{member}")
            if version >= 3:
                return {"group_id": self.group, "members": [{"member_id": own, "group_instance_id": None, "reason?": None}]}
            return {"group_id": self.group, "member_id": own}

        return self._ask("leave_group", fields, version=version, member=member, forgets=(f"member:{member}",))

    def _leave_all(self) -> Steps:
        for member in list(self.joined):
            yield [self._leave(member)]
        self.joined.clear()

    def commit(self) -> Steps:
        topic = self._topic()
        member = self.rng.choice([0, *self.joined])
        generation = self.joined.get(member, -1) + (1 if member and self.rng.random() < 0.1 else 0)
        wanted = {
            "partition_index": self._partition(topic),
            "committed_offset": self.rng.choice([0, 1, 5, 1000]),
            "committed_leader_epoch?": -1,
            "committed_metadata": self.rng.choice(["", "where I was", None, "x" * 5000]),
        }
        version = self.version_of("offset_commit")
        yield [
            self._ask(
                "offset_commit",
                lambda side: {
                    "group_id": self.group,
                    "generation_id_or_member_epoch": generation,
                    "member_id": side.id(f"member:{member}") if member else "",
                    "group_instance_id?": None,
                    "retention_time?": -1,
                    "topics": [{**about("offset_commit", version, topic, side), "partitions": [wanted]}],
                },
                version=version,
                member=member,
                again=UNSETTLED,
            )
        ]

    def fetch_offsets(self) -> Steps:
        version = self.version_of("offset_fetch")
        topic, everything = self._topic(), version >= 2 and self.rng.random() < 0.3
        partitions = [self._partition(topic), 0]
        stable = self.rng.random() < 0.3

        def fields(side: Side) -> Mapping[str, Any]:
            named = {**about("offset_fetch", version, topic, side), "partition_indexes": partitions}
            topics = None if everything else [named]
            if version < 8:
                return {"group_id": self.group, "topics": topics, "require_stable?": stable}
            group = {"group_id": self.group, "member_id?": None, "member_epoch?": -1, "topics": topics}
            return {"groups": [group], "require_stable": stable}

        yield [self._ask("offset_fetch", fields, version=version, again=UNSETTLED, until=self._only_those_there)]

    def _only_those_there(self, told: dict[str, Any]) -> bool:
        """Kafka lets go of the offsets of a deleted topic some time after it has answered."""
        topics = told["topics"] if "topics" in told else told["groups"][0]["topics"]
        return all(
            one["name"] in self.topics for one in topics if "name" in one and one["partitions"][0]["committed_offset"] >= 0
        )

    def delete_offsets(self) -> Steps:
        topic = self._topic()
        topics = [{"name": topic, "partitions": [{"partition_index": self._partition(topic)}]}]
        yield [self._ask("offset_delete", {"group_id": self.group, "topics": topics})]

    def look_at_groups(self) -> Steps:
        yield [self._ask("describe_groups", {"groups": [self.group], "include_authorized_operations?": False}, again=UNSETTLED)]
        low, high = self.versions["find_coordinator"]
        version = self.rng.randint(low, high)
        if version >= 4:
            fields: dict[str, Any] = {"key_type": 0, "coordinator_keys": [self.group]}
        else:
            fields = {"key": self.group, "key_type?": 0}
        yield [self._ask("find_coordinator", fields, version=version)]
        states = self.rng.choice([[], [], ["Stable"], ["stable", "Empty"], ["PreparingRebalance"], ["Nonsense"]])
        types = self.rng.choice([[], [], ["classic"], ["Consumer"], ["classic", "consumer"], ["nonsense"]])
        yield [self._ask("list_groups", {"states_filter?": states, "types_filter?": types}, look=self._own_groups)]

    def _own_groups(self, told: dict[str, Any]) -> dict[str, Any]:
        return {**told, "groups": [one for one in told["groups"] if self.tag in one["group_id"]]}

    def delete_groups(self) -> Steps:
        yield [self._ask("delete_groups", {"groups_names": [self.group, f"none-{self.tag}"]})]


def subscription(topic: str, user_data: bytes) -> bytes:
    """ConsumerProtocolSubscription, version 0: Kafka reads it, and leaves members waiting whose metadata it cannot read."""
    name = topic.encode()
    return struct.pack(f">hih{len(name)}si", 0, 1, len(name), name, len(user_data)) + user_data
