"""Event streams at the live end: shared reading, and who may not share."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.endpoints.rest_options import SseOptions
from gateway.endpoints.sse_live import EventFrames
from security.policy.quotas import Quota, Quotas
from tests.gateway.endpoints.test_sse import EVENTS, ended, events, follow, last_id, record


def hub(door: Any) -> Any:
    return next(route.operation.handler.__self__ for route in door.app.router.paths()["/v1/events"].values())._live()


async def live(door: Any, members: int) -> None:
    """All of so many streams stand at the live end, and share."""
    await door.until(
        lambda: sum(len(group.members) for one in hub(door)._broadcasts.values() for group in one._groups.values()) == members
    )


def texts(body: bytes) -> list[str]:
    return [event.json["text"] for event in events(body)]


async def test_one_read_and_one_encoding_for_all(door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await door.publish("orders", record("a", "old"))
    calls = [await follow(door, target) for target in (EVENTS, EVENTS, "/v1/events?address=orders", f"{EVENTS}?from=earliest")]
    await live(door, 4)
    assert len(hub(door)._broadcasts) == 1
    encoded = []
    plain = EventFrames.record
    monkeypatch.setattr(EventFrames, "record", lambda frames, one: (encoded.append(one), plain(frames, one))[1])
    await door.publish("orders", record("a", "new"))
    for call in calls:
        await call.until(b"new")
    assert len(encoded) == 1
    assert [texts(await ended(call))[-1] for call in calls] == ["new"] * 4
    assert not hub(door)._broadcasts
    assert not door.engine._watchers


async def test_nothing_is_missed_or_doubled_whoever_joins_and_leaves_when(door: Any) -> None:
    await door.publish("orders", record("k", "0"))
    calls, last = [], 0
    for round in range(12):
        calls.append(await follow(door, f"{EVENTS}?from=earliest"))
        for _ in range(round % 3 + 1):
            last += 1
            await door.publish("orders", record("k", str(last)))
        if round % 4 == 3:
            leaver = calls.pop(0)
            found = texts(await ended(leaver))
            assert found == [str(number) for number in range(len(found))]
    for call in calls:
        await call.until(f'"text":"{last}"'.encode())
        assert texts(await ended(call)) == [str(number) for number in range(last + 1)]


async def test_one_that_still_writes_falls_behind_and_catches_up(door: Any) -> None:
    await door.publish("orders", record("k", "0"))
    slow, fast = await follow(door), await follow(door)
    await live(door, 2)
    slow.going.clear()
    for number in range(1, 6):
        await door.publish("orders", record("k", str(number)))
        await fast.until(f'"text":"{number}"'.encode())
    await live(door, 1)
    slow.going.set()
    await slow.until(b'"text":"5"')
    await live(door, 2)
    await door.publish("orders", record("k", "6"))
    for call in (slow, fast):
        await call.until(b'"text":"6"')
        assert texts(await ended(call)) == [str(number) for number in range(7)]


async def test_heartbeats_come_at_the_live_end_too_and_look_at_the_rights(open_door: Any) -> None:
    door = open_door(sse=SseOptions(heartbeat_ms=20))
    await door.publish("orders", record("eu/1", "old"))
    token = door.token("orders-reader")
    call = await follow(door, token=token)
    await live(door, 1)
    before = call.body.count(b":\n")
    await door.until(lambda: call.body.count(b":\n") > before + 1)
    assert last_id(call.body) == f"{door.engine.next_sequence()}-0"
    door.revoke(token)
    answer = await call.answer()
    assert events(answer.body)[-1].json["type"] == "/problems/token-revoked"
    assert not hub(door)._broadcasts


async def test_rights_that_shrink_to_some_keys_end_the_sharing_and_nothing_else(open_door: Any) -> None:
    door = open_door(sse=SseOptions(heartbeat_ms=20))
    await door.publish("orders", record("eu/1", "old"))
    call = await follow(door, token=door.token("orders-reader"))
    await live(door, 1)
    door.grant({"orders-reader": [{"actions": ["read"], "topic": "orders", "key": "eu/*"}]})
    await door.publish("orders", record("us/1", "planted"), record("eu/1", "mine"))
    await call.until(b"mine")
    await live(door, 0)
    assert b"planted" not in await ended(call)


async def test_who_may_read_some_keys_never_shares(door: Any) -> None:
    await door.publish("orders", record("eu/1", "old"))
    call = await follow(door, token=door.token("eu-reader"))
    await call.until(b"old")
    await door.publish("orders", record("us/1", "planted"), record("eu/1", "live"))
    await call.until(b"live")
    assert not hub(door)._broadcasts
    assert b"planted" not in await ended(call)


async def test_what_is_shared_is_paid_for_by_each(door: Any) -> None:
    class Ledger(Quotas):
        """Puts off every other payment, and remembers what was paid."""

        unlimited = property(lambda ledger: False)

        def __init__(self) -> None:
            super().__init__({})
            self.asked = self.paid = 0

        def admit(self, quota: Any, principal_name: str, cost: float, now_ns: int) -> int:
            if quota is not Quota.BYTES_OUT:
                return 0
            self.asked += 1
            if self.asked % 2:
                return 5
            self.paid += cost
            return 0

    await door.publish("orders", record("k", "0"))
    ledger = door.pipeline.quotas = Ledger()
    calls = [await follow(door, EVENTS, token=door.token("orders-reader")) for _ in range(2)]
    await live(door, 2)
    for number in range(1, 21):
        await door.publish("orders", record("k", f"{number:03}"))
        for call in calls:
            await call.until(f'"text":"{number:03}"'.encode())
    await door.until(lambda: ledger.paid == 2 * 20 * 4)
    for call in calls:
        assert texts(await ended(call)) == [f"{number:03}" for number in range(1, 21)]


async def test_a_deleted_topic_ends_its_streams(door: Any) -> None:
    await door.publish("orders", record("k", "0"))
    call = await follow(door)
    await live(door, 1)
    await door.engine.delete_topic("orders")
    with pytest.raises((AssertionError, asyncio.CancelledError)):  # the answer had begun: it is cut off
        await call.answer()
    assert not hub(door)._broadcasts
