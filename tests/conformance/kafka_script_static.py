"""Calls of a classic group whose members keep their place when they come back as new processes (KIP-345)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.conformance.kafka_script import MEMBERS, SESSION_MS, UNSETTLED, Answers, Script, Steps, about
from tests.conformance.kafka_script_groups import subscription
from tests.conformance.kafka_side import Ask, Side, former

JOINS_FROM, NAMED_LEAVES_FROM, COMMITS_FROM, HEARTBEATS_FROM, SYNCS_FROM = 5, 3, 7, 3, 3


class StaticCalls(Script):
    """`members:` of the sequence's own group and these are kept apart by the `s` of their names."""

    def look_after_static(self) -> Steps:
        for member in MEMBERS:
            if len(self.static) < 2 and member not in self.static:
                yield from self.static_join(member)
        member = self.rng.choice(MEMBERS)
        if member not in self.static:
            yield from self.static_join(member)
            return
        actions: list[Callable[[int], Steps]] = [
            self.static_restart, self.static_restart, self.static_heartbeat, self.static_heartbeat, self.static_commit,
            self.static_leave, self.static_join,
        ]  # fmt: skip
        yield from self.rng.choice(actions)(member)
        if self.rng.random() < 0.3:
            described = {"groups": [self.static_group], "include_authorized_operations?": False}
            yield [self._ask("describe_groups", described, version=self.version_of("describe_groups", 4), again=UNSETTLED)]

    def static_join(self, member: int) -> Steps:
        """One more, or one that says something new: all come together."""
        others = [other for other in self.static if other != member]
        step = [self._static_join(member)]
        if others:
            noticed = self._static_heartbeat(others[0], through=0)
            step += [noticed._replace(until=lambda told: told["error_code"] != 0, alone=True)]
            step += [self._static_join(other) for other in others]
        answers = yield step
        self._static_remember([member, *others], [answers[0], *answers[2:]])
        yield from self._static_sync()

    def static_restart(self, member: int) -> Steps:
        """Without its member id: it takes over what it had, nobody else notices, and the one before is fenced."""
        (told,) = yield [self._static_join(member, fresh=True)]
        self._static_remember([member], [told])
        if self.rng.random() < 0.7:
            yield [self._static_heartbeat(member, late=True)]
        yield [self._static_sync_of(member, [])]
        yield [self._static_heartbeat(member)]

    def _static_remember(self, members: list[int], answers: Answers) -> None:
        for member, told in zip(members, answers, strict=True):
            if told["error_code"] == 0:
                self.static[member] = told["generation_id"]

    def _static_join(self, member: int, *, fresh: bool = False) -> Ask:
        self.joins += 1
        metadata = subscription(next(iter(self.topics), "none"), b"join %d" % self.joins)
        return self._ask(
            "join_group",
            lambda side: {
                "group_id": self.static_group,
                "session_timeout": SESSION_MS,
                "rebalance_timeout": SESSION_MS,
                "member_id": "" if fresh else side.id(f"member:s{member}", ""),
                "group_instance_id": f"i{member}",
                "protocol_type": "consumer",
                "protocols": [{"name": "range", "metadata": metadata}],
                "reason?": None,
            },
            version=self.version_of("join_group", JOINS_FROM),
            member=member,
            binds={f"member:s{member}": lambda told: told["member_id"], "static leader": lambda told: told["leader"]},
            again=UNSETTLED,
        )

    def _static_sync(self) -> Steps:
        if len(set(self.static.values())) == 1:
            members = list(self.static)
            self.rng.shuffle(members)
            yield [self._static_sync_of(member, members) for member in members]

    def _static_sync_of(self, member: int, members: list[int]) -> Ask:
        generation = self.static[member]

        def fields(side: Side) -> Mapping[str, Any]:
            own = side.id(f"member:s{member}")
            shares = [{"member_id": side.id(f"member:s{one}"), "assignment": b"share %d" % one} for one in members]
            return {
                "group_id": self.static_group,
                "generation_id": generation,
                "member_id": own,
                "group_instance_id": f"i{member}",
                "protocol_type?": "consumer",
                "protocol_name?": "range",
                "assignments": shares if side.id("static leader") == own else [],
            }

        return self._ask("sync_group", fields, version=self.version_of("sync_group", SYNCS_FROM), member=member)

    def _static_heartbeat(self, member: int, *, through: int | None = None, late: bool = False, wrong: int = 0) -> Ask:
        generation, name = self.static.get(member, 1) + wrong, f"member:s{member}"
        return self._ask(
            "heartbeat",
            lambda side: {
                "group_id": self.static_group,
                "generation_id": generation,
                "member_id": side.id(former(name) if late else name, "nobody"),
                "group_instance_id": f"i{member}",
            },
            version=self.version_of("heartbeat", HEARTBEATS_FROM),
            member=member if through is None else through,
        )

    def static_heartbeat(self, member: int) -> Steps:
        late = self.rng.random() < 0.3
        yield [self._static_heartbeat(member, late=late, wrong=self.rng.choice([0, 0, -1, 1]))]

    def static_commit(self, member: int) -> Steps:
        topic, version = self._topic(), self.version_of("offset_commit", COMMITS_FROM)
        wanted = {
            "partition_index": self._partition(topic),
            "committed_offset": self.rng.randrange(100),
            "committed_leader_epoch": -1,
            "committed_metadata": "",
        }
        name = f"member:s{member}"
        who = name if self.rng.random() < 0.7 else former(name)
        generation = self.static[member] + self.rng.choice([0, 0, 0, -1])
        yield [
            self._ask(
                "offset_commit",
                lambda side: {
                    "group_id": self.static_group,
                    "generation_id_or_member_epoch": generation,
                    "member_id": side.id(who, "nobody"),
                    "group_instance_id": f"i{member}",
                    "topics": [{**about("offset_commit", version, topic, side), "partitions": [wanted]}],
                },
                version=version,
                member=member,
                again=UNSETTLED,
            )
        ]

    def static_leave(self, member: int) -> Steps:
        """By its instance id alone, as tools do; by a member id that it has no more, which is refused; or as any member."""
        name = f"member:s{member}"
        said: Callable[[Side], str] = self.rng.choice(
            [lambda side: "", lambda side: side.id(name, ""), lambda side: side.id(former(name), "nobody")]
        )
        instance = f"i{member}" if self.rng.random() < 0.9 else "nobody's"
        (told,) = yield [
            self._ask(
                "leave_group",
                lambda side: {
                    "group_id": self.static_group,
                    "members": [{"member_id": said(side), "group_instance_id": instance, "reason?": "gone"}],
                },
                version=self.version_of("leave_group", NAMED_LEAVES_FROM),
                member=member,
            )
        ]
        if told["members"][0]["error_code"] == 0:
            del self.static[member]
            if self.static:
                yield from self.static_join(next(iter(self.static)))

    def leave_static(self) -> Steps:
        members = [{"member_id": "", "group_instance_id": f"i{member}", "reason?": None} for member in self.static]
        if members:
            fields = {"group_id": self.static_group, "members": members}
            yield [self._ask("leave_group", fields, version=self.version_of("leave_group", NAMED_LEAVES_FROM))]
        self.static.clear()
