"""The way through on a real engine: each step refuses what it is there for, on every way in and out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from broker.broker import BrokerOptions
from broker.delivery.position import AtOffset, AtTime, Cursor
from broker.errors import IllegalTopicName, OffsetOutOfRange, UnknownPartition, UnknownTopic
from gateway.errors import Busy, RecordInvalid, RequestInvalid
from gateway.feed import Feed
from gateway.pipeline import TIMESTAMP_MS_MAX, Incoming, PipelineOptions
from gateway.settings import Listener
from security.errors import (
    AccessDenied,
    CredentialsInvalid,
    CredentialsMissing,
    LoginsThrottled,
    QuotaExceeded,
    TokenExpired,
    TokenRevoked,
)
from security.identity.chain import BearerToken, NoCredential
from security.identity.failed_logins import FailedLoginOptions, FailedLogins
from security.policy.model import Action, Scope
from security.policy.quotas import RateLimit
from security.principal import Session

ID = "01890a5d-ac96-774b-bcce-b302099a8057"

NO_READ: dict[str, Any] = {"eu-reader": [{"actions": ["describe"], "topic": "orders"}]}
OTHER_KEYS: dict[str, Any] = {"eu-reader": [{"actions": ["read"], "topic": "orders", "key": "us/*"}]}


def record(key: str | None = "k", text: str = "v", **more: Any) -> Incoming:
    return Incoming(None if key is None else key.encode(), text.encode(), **more)


async def mixed_orders(door: Any) -> None:
    """Four records in partition 0: eu/1, us/1, no key, eu/2."""
    keys = ("eu/1", "us/1", None, "eu/2")
    await door.publish("orders", *[record(key, str(key), partition=0, timestamp_ms=1_000) for key in keys])


class TestIdentify:
    async def test_a_token_makes_a_session(self, door: Any) -> None:
        session = await door.session("publisher")
        assert (session.protocol, session.peer, session.principal.proved_by) == ("rest", "127.0.0.1:1", "token")

    async def test_nothing_offered(self, door: Any) -> None:
        with pytest.raises(CredentialsMissing):
            await door.pipeline.identify(NoCredential(), peer="p", protocol="rest", listener=door.listener, id="x")
        assert door.audited[-1][4] == "refused"

    async def test_nobody_in_particular_has_no_rights_until_bound_to_a_role(self, open_door: Any) -> None:
        listener = Listener(plain=True, anonymous=True)
        for bindings in ((), ({"role": "subscriber", "principals": ["*"]},)):
            door = open_door(bindings=bindings)
            session = await door.pipeline.identify(NoCredential(), peer="p", protocol="rest", listener=listener, id="x")
            with pytest.raises(AccessDenied):
                await door.pipeline.latest(session, "orders", b"k")
        door = open_door(bindings=[{"role": "subscriber", "principals": ["anonymous"]}])
        session = await door.pipeline.identify(NoCredential(), peer="p", protocol="rest", listener=listener, id="x")
        with pytest.raises(UnknownTopic):
            await door.pipeline.latest(session, "orders", b"k")
        with pytest.raises(CredentialsInvalid):
            await door.pipeline.identify(BearerToken("x"), peer="p", protocol="rest", listener=listener, id="x")

    async def test_a_wrong_token_is_audited_without_its_text(self, door: Any) -> None:
        token = door.token()[:-1] + "!"
        with pytest.raises(CredentialsInvalid):
            await door.pipeline.identify(BearerToken(token), peer="p", protocol="rest", listener=door.listener, id="x")
        assert door.audited[-1][0] == "identity"
        assert token not in str(door.audited)


class TestFailedLogins:
    """What they do to the next ones: `tests/security/identity/test_failed_logins.py`. Here: that every log-in is asked."""

    def limit(self, door: Any, **options: int) -> None:
        door.pipeline.failed_logins = FailedLogins(FailedLoginOptions(**options), door.clock.monotonic_ms)

    async def identify(self, door: Any, token: str, peer: str = "192.0.2.1:1") -> Any:
        return await door.pipeline.identify(BearerToken(token), peer=peer, protocol="rest", listener=door.listener, id="x")

    async def test_who_is_not_heard_any_more_is_told_when_to_try_again_and_audited_once(self, door: Any) -> None:
        self.limit(door, failures_free=1, delay_ms=60_000, delay_ms_max=60_000)
        token = door.token()
        for error in (CredentialsInvalid, LoginsThrottled, LoginsThrottled):
            with pytest.raises(error):
                await self.identify(door, "a wrong one")
        assert [entry[0] for entry in door.audited] == ["identity", "identity"]
        assert "too many log-ins" in door.audited[-1][-1]
        assert door.count("logins_throttled_total", protocol="rest", outcome="refused") == 2
        assert (await self.identify(door, token)).principal.kind == "service"
        with pytest.raises(CredentialsInvalid):
            await self.identify(door, "a wrong one", "192.0.2.2:1")

    async def test_who_waits_is_judged_then(self, door: Any) -> None:
        self.limit(door, failures_free=1, address_failures_free=1, delay_ms=1, delay_ms_max=1)
        for _ in range(2):
            with pytest.raises(CredentialsInvalid):
                await self.identify(door, "a wrong one")
        assert (await self.identify(door, door.token())).principal.kind == "service"  # at the address of a guesser
        waited = door.count("logins_throttled_total", protocol="rest", outcome="delayed")
        assert waited >= 1
        token = door.token()
        await self.identify(door, token)
        await self.identify(door, token, "192.0.2.2:1")
        assert door.count("logins_throttled_total", protocol="rest", outcome="delayed") == waited + 1

    async def test_what_becomes_of_a_credential_while_it_waits_counts(self, door: Any) -> None:
        self.limit(door, address_failures_free=1, delay_ms=50, delay_ms_max=50)
        token = door.token()
        with pytest.raises(CredentialsInvalid):
            await self.identify(door, "a wrong one")
        waiting = asyncio.create_task(self.identify(door, token))
        await asyncio.sleep(0)
        assert door.count("logins_throttled_total", protocol="rest", outcome="delayed") == 1
        door.revoke(token)
        with pytest.raises(TokenRevoked):
            await waiting

    async def test_an_expired_token_is_nobody_s_guess(self, door: Any) -> None:
        self.limit(door, address_failures_free=1, delay_ms=60_000, delay_ms_max=60_000)
        token = door.token(ttl_ms=1)
        door.clock.ahead_ms += 10
        with pytest.raises(TokenExpired):
            await self.identify(door, token)
        assert (await self.identify(door, door.token())).principal.kind == "service"
        assert door.pipeline.failed_logins.stats().addresses == 0

    async def test_nothing_offered_is_no_guess_either(self, door: Any) -> None:
        for _ in range(3):
            with pytest.raises(CredentialsMissing):
                await door.pipeline.identify(NoCredential(), peer="p:1", protocol="rest", listener=door.listener, id="x")
        assert door.pipeline.failed_logins.stats().pairs == 0

    async def test_over_http(self, door: Any) -> None:
        self.limit(door, failures_free=1, delay_ms=60_000, delay_ms_max=60_000)
        assert (await door.get("/v1/whoami", token="wrong")).status == 401
        answer = await door.get("/v1/whoami", token="wrong")
        assert (answer.status, answer.slug) == (429, "logins-throttled")
        assert int(answer.headers["retry-after"]) >= 60
        assert answer.problem["retry_after_ms"] > 59_000
        assert (await door.get("/v1/whoami")).status == 200


class TestPublish:
    async def test_receipts_in_order(self, door: Any) -> None:
        session = await door.session("creator")
        records = [record(f"k{number}", message_id=ID if number == 3 else None) for number in range(20)]
        receipts = await door.pipeline.publish(session, "orders", records)
        assert [one.message_id for one in receipts] == [one.message_id for one in records]
        assert receipts[3].message_id == ID
        assert {one.topic for one in receipts} == {"orders"}
        for one, receipt in zip(records, receipts, strict=True):
            page = await door.pipeline.read(
                session, "orders", receipt.partition, receipt.offset, records_max=1, bytes_max=1, wait_max_ms=0
            )
            assert page.records[0].key == one.key

    async def test_acks_none_promises_no_offset(self, door: Any) -> None:
        session = await door.session()
        [receipt] = await door.pipeline.publish(session, "orders", [record()], durable=False)
        assert receipt.offset == -1

    async def test_it_is_audited_and_counted(self, door: Any) -> None:
        await door.publish("orders", ("k", "1234"), ("k", "5678"))
        assert ("access", "publish", "orders", "allowed", "") in [(entry[0], *entry[2:]) for entry in door.audited]
        assert door.count("records_in_total", protocol="rest") == 2
        assert door.count("bytes_in_total", protocol="rest") == 10

    async def test_without_a_right(self, door: Any) -> None:
        with pytest.raises(AccessDenied):
            await door.pipeline.publish(await door.session("subscriber"), "orders", [record()])
        assert door.audited[-1][4] == "denied"
        assert not door.engine.topics()

    async def test_one_forbidden_key_refuses_all_of_it(self, door: Any) -> None:
        await door.engine.create_topic("orders", 1, {})
        session = await door.session("eu-writer")
        for forbidden in (record("us/1"), record(None), record("eu"), record("")):
            with pytest.raises(AccessDenied, match="not the key of record 1"):
                await door.pipeline.publish(session, "orders", [record("eu/1"), forbidden, record("eu/2")])
        assert door.engine.offsets("orders")[0].high_watermark == 0
        await door.pipeline.publish(session, "orders", [record("eu/1"), record("eu/2")])
        assert door.engine.offsets("orders")[0].high_watermark == 2

    async def test_keys_are_data_and_appear_in_no_refusal(self, door: Any) -> None:
        await door.engine.create_topic("orders", 1, {})
        with pytest.raises(AccessDenied) as refusal:
            await door.pipeline.publish(await door.session("eu-writer"), "orders", [record("planted-marker-0001")])
        with pytest.raises(AccessDenied) as of_latest:
            await door.pipeline.latest(await door.session("eu-reader"), "orders", b"planted-marker-0001")
        assert "planted" not in f"{refusal.value} {of_latest.value} {door.audited}"

    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            ({"message_id": ""}, "UUIDv7"),
            ({"message_id": ID.upper()}, "UUIDv7"),
            ({"message_id": "01890a5d-ac96-474b-bcce-b302099a8057"}, "UUIDv7"),
            ({"message_id": ID + "\n"}, "UUIDv7"),
            ({"timestamp_ms": -1}, "timestamp"),
            ({"timestamp_ms": TIMESTAMP_MS_MAX + 1}, "timestamp"),
            ({"timestamp_ms": 10**30}, "timestamp"),
            ({"headers": ((b"sprawl-message-id", b"x"),)}, "node's own"),
            ({"headers": ((b"a", b"b"), (b"Sprawl-Expires-At", b"1"))}, "node's own"),
            ({"headers": ((b"a", b"b"),) * 101}, "record_headers_max"),
        ],
    )
    async def test_invalid_records_are_named_by_index(self, door: Any, wrong: dict[str, Any], reason: str) -> None:
        with pytest.raises(RecordInvalid, match=rf"record 2 .*{reason}"):
            await door.pipeline.publish(await door.session(), "orders", [record(), record(), record(**wrong)])
        assert not door.engine.topics()

    async def test_nothing_at_all(self, door: Any) -> None:
        with pytest.raises(RequestInvalid):
            await door.pipeline.publish(await door.session(), "orders", [])
        assert not door.engine.topics()

    async def test_the_most_that_is_valid(self, door: Any) -> None:
        edges = record(message_id=ID, timestamp_ms=TIMESTAMP_MS_MAX, headers=((b"a", b"b"),) * 100), record(timestamp_ms=0)
        assert len(await door.pipeline.publish(await door.session(), "orders", edges)) == 2

    async def test_a_topic_is_made_only_by_who_may_create(self, door: Any) -> None:
        with pytest.raises(UnknownTopic):
            await door.pipeline.publish(await door.session("publisher"), "orders", [record()])
        await door.pipeline.publish(await door.session("creator"), "orders", [record()])
        assert door.engine.topics()["orders"].partitions == 4

    async def test_and_only_where_the_node_makes_topics(self, open_door: Any) -> None:
        door = open_door(broker=BrokerOptions(auto_create=False))
        with pytest.raises(UnknownTopic):
            await door.pipeline.publish(await door.session(), "orders", [record()])

    async def test_publishes_at_once_are_bounded(self, open_door: Any) -> None:
        door = open_door(pipeline=PipelineOptions(publishes_max=2))
        await door.engine.create_topic("orders", 1, {})
        session = await door.session()
        tries = await asyncio.gather(
            *(door.pipeline.publish(session, "orders", [record()]) for _ in range(3)), return_exceptions=True
        )
        assert [isinstance(one, Busy) for one in tries] == [False, False, True]
        await door.pipeline.publish(session, "orders", [record()])

    async def test_a_failed_publish_gives_its_place_back(self, open_door: Any) -> None:
        door = open_door(pipeline=PipelineOptions(publishes_max=1))
        session = await door.session()
        for _ in range(3):
            with pytest.raises(UnknownPartition):
                await door.pipeline.publish(session, "orders", [record(partition=99)])

    async def test_quotas(self, open_door: Any) -> None:
        door = open_door(quotas={"bytes_in": RateLimit(1, 10), "requests": RateLimit(0.001, 4)})
        session, other = await door.session(), await door.session()
        await door.pipeline.publish(session, "orders", [record("12345", "67890")])
        with pytest.raises(QuotaExceeded, match="bytes_in"):
            await door.pipeline.publish(session, "orders", [record("12345", "67890")])
        await door.pipeline.publish(other, "orders", [record("12345", "67890")])
        for _ in range(2):
            await door.pipeline.latest(session, "orders", b"k")
        with pytest.raises(QuotaExceeded, match="requests"):
            await door.pipeline.latest(session, "orders", b"k")


# Every way out, as (name, what it gives: the keys that were delivered). A forbidden key can be in none of them.

Way = Callable[[Any, Session], Awaitable[list[bytes | None]]]


class TestGroupsAndTransactionalIds:
    """Names like a topic's, with actions of their own."""

    async def test_roles_that_every_node_has(self, door: Any) -> None:
        subscriber, publisher = await door.session("subscriber"), await door.session("publisher")
        door.pipeline.authorise_group(subscriber, "a name that no topic has: $%")
        door.pipeline.authorise_transaction(publisher, "tx 1")
        with pytest.raises(AccessDenied) as refused:
            door.pipeline.authorise_transaction(subscriber, "tx 1")
        assert (refused.value.action, refused.value.resource) == ("transaction", "transactional id tx 1")
        with pytest.raises(AccessDenied) as refused:
            door.pipeline.authorise_group(publisher, "g" * 1_000)
        assert refused.value.action == "group"
        assert len(refused.value.resource) < 300
        assert door.audited[-1][4] == "denied"

    async def test_by_the_name(self, door: Any) -> None:
        session = await door.session("subscriber", scopes=["group:billing*"])
        assert door.pipeline.may_use_group(session, "billing-eu")
        count = len(door.audited)
        assert not door.pipeline.may_use_group(session, "shipping")
        assert len(door.audited) == count, "nobody asked for it by name"
        with pytest.raises(AccessDenied):
            door.pipeline.authorise_group(session, "shipping")

    async def test_a_revoked_token(self, door: Any) -> None:
        token = door.token("subscriber")
        session = await door.session(token=token)
        door.revoke(token)
        with pytest.raises(TokenRevoked):
            door.pipeline.authorise_group(session, "g")


async def by_offset(door: Any, session: Session, wait_max_ms: int = 0, offset: Any = 0) -> list[bytes | None]:
    page = await door.pipeline.read(session, "orders", 0, offset, records_max=100, bytes_max=1 << 20, wait_max_ms=wait_max_ms)
    return [found.key for found in page.records]


async def by_timestamp(door: Any, session: Session) -> list[bytes | None]:
    return await by_offset(door, session, offset=AtTime(500))


async def long_poll(door: Any, session: Session) -> list[bytes | None]:
    return await by_offset(door, session, 30_000)


async def of_feed(feed: Feed, wait_max_ms: int = 0) -> list[bytes | None]:
    try:
        found = await feed.next(bytes_max=1 << 20, records_max=100, wait_max_ms=wait_max_ms)
        return [one.record.key for one in found]
    finally:
        feed.close()


async def subscription(door: Any, session: Session) -> list[bytes | None]:
    return await of_feed(await door.pipeline.subscribe(session, "orders", None, "earliest"))


async def waiting_subscription(door: Any, session: Session) -> list[bytes | None]:
    return await of_feed(await door.pipeline.subscribe(session, "orders", None, "earliest"), 30_000)


async def subscription_from_offset(door: Any, session: Session) -> list[bytes | None]:
    return await of_feed(await door.pipeline.subscribe(session, "orders", None, AtOffset(0, 0)))


async def subscription_from_time(door: Any, session: Session) -> list[bytes | None]:
    return await of_feed(await door.pipeline.subscribe(session, "orders", None, AtTime(0)))


async def subscription_from_cursor(door: Any, session: Session) -> list[bytes | None]:
    return await of_feed(await door.pipeline.subscribe(session, "orders", None, Cursor(0)))


WAYS: list[Way] = [
    by_offset,
    by_timestamp,
    long_poll,
    subscription,
    waiting_subscription,
    subscription_from_offset,
    subscription_from_time,
    subscription_from_cursor,
]
READS_OF_A_KEY: list[Callable[[Any, Session, bytes | None], Awaitable[object]]] = [
    lambda door, session, key: door.pipeline.latest(session, "orders", key),
    lambda door, session, key: door.pipeline.subscribe(session, "orders", key, "earliest"),
]


class TestWaysOut:
    @pytest.mark.parametrize("way", WAYS)
    async def test_all_keys(self, door: Any, way: Way) -> None:
        await mixed_orders(door)
        assert await way(door, await door.session("orders-reader")) == [b"eu/1", b"us/1", None, b"eu/2"]

    @pytest.mark.parametrize("way", WAYS)
    async def test_some_keys(self, door: Any, way: Way) -> None:
        await mixed_orders(door)
        assert await way(door, await door.session("eu-reader")) == [b"eu/1", b"eu/2"]

    @pytest.mark.parametrize("way", WAYS)
    async def test_some_keys_by_the_scope_of_a_token(self, door: Any, way: Way) -> None:
        await mixed_orders(door)
        assert await way(door, await door.session("admin", scopes=["read:orders:us/*"])) == [b"us/1"]

    @pytest.mark.parametrize("way", WAYS)
    async def test_none_at_all(self, door: Any, way: Way) -> None:
        await mixed_orders(door)
        for role in ("publisher", "eu-writer"):
            with pytest.raises(AccessDenied):
                await way(door, await door.session(role))

    @pytest.mark.parametrize("way", WAYS)
    async def test_a_topic_without_a_right_is_refused_alike_whether_it_exists_or_not(self, door: Any, way: Way) -> None:
        session = await door.session("eu-writer")
        with pytest.raises(AccessDenied) as missing:
            await way(door, session)
        await mixed_orders(door)
        with pytest.raises(AccessDenied) as existing:
            await way(door, session)
        assert str(missing.value) == str(existing.value)

    @pytest.mark.parametrize("way", WAYS)
    async def test_an_unknown_topic_is_said_to_who_may_read_it(self, door: Any, way: Way) -> None:
        with pytest.raises(UnknownTopic):
            await way(door, await door.session("orders-reader"))

    @pytest.mark.parametrize("way", WAYS)
    async def test_it_is_counted(self, door: Any, way: Way) -> None:
        await mixed_orders(door)
        await way(door, await door.session("eu-reader"))
        assert door.count("records_out_total", protocol="rest") == 2
        assert door.count("bytes_out_total", protocol="rest") == 16

    @pytest.mark.parametrize("read", READS_OF_A_KEY)
    async def test_reading_a_key_needs_that_key(self, door: Any, read: Any) -> None:
        await mixed_orders(door)
        session = await door.session("eu-reader")
        assert await read(door, session, b"eu/1") is not None
        for key in (b"us/1", b"absent", b""):
            with pytest.raises(AccessDenied):
                await read(door, session, key)

    async def test_the_null_key_needs_the_whole_topic(self, door: Any) -> None:
        await door.publish("orders", (None, "v"))
        with pytest.raises(AccessDenied):
            await door.pipeline.latest(await door.session("eu-reader"), "orders", None)
        assert await door.pipeline.latest(await door.session("orders-reader"), "orders", None) is not None

    async def test_cut_records_keep_the_offsets_of_the_others(self, door: Any) -> None:
        await mixed_orders(door)
        session = await door.session("eu-reader")
        page = await door.pipeline.read(session, "orders", 0, 0, records_max=10, bytes_max=1 << 20, wait_max_ms=0)
        assert ([found.offset for found in page.records], page.next_offset) == ([0, 3], 4)

    async def test_a_page_of_forbidden_records_is_empty_and_goes_on(self, door: Any) -> None:
        await door.publish("orders", *[record("us/1", partition=0)] * 5, record("eu/1", partition=0))
        session = await door.session("eu-reader")
        page = await door.pipeline.read(session, "orders", 0, 0, records_max=2, bytes_max=1 << 20, wait_max_ms=0)
        assert (page.records, page.next_offset) == ([], 2)

    async def test_where_a_partition_begins_and_ends(self, door: Any) -> None:
        await mixed_orders(door)
        session = await door.session()
        assert await by_offset(door, session, offset="earliest") == [b"eu/1", b"us/1", None, b"eu/2"]
        assert await by_offset(door, session, offset="latest") == []
        assert await by_offset(door, session, offset=AtTime(1_001)) == []
        with pytest.raises(OffsetOutOfRange):
            await by_offset(door, session, offset=5)

    async def test_quota_on_what_is_read(self, open_door: Any) -> None:
        door = open_door(quotas={"bytes_out": RateLimit(1, 20)})
        await mixed_orders(door)
        session = await door.session()
        await by_offset(door, session)
        with pytest.raises(QuotaExceeded, match="bytes_out"):
            await by_offset(door, session)

    async def test_feeds_are_bounded_and_give_their_place_back(self, open_door: Any) -> None:
        door = open_door(pipeline=PipelineOptions(feeds_max=2))
        await mixed_orders(door)
        session = await door.session()
        feeds = [await door.pipeline.subscribe(session, "orders", None, "latest") for _ in range(2)]
        with pytest.raises(Busy, match="feeds_max"):
            await door.pipeline.subscribe(session, "orders", None, "latest")
        assert door.count("subscriptions", protocol="rest") == 2
        feeds[0].close()
        feeds[0].close()
        feeds.append(await door.pipeline.subscribe(session, "orders", None, "latest"))
        for feed in feeds:
            feed.close()
        assert door.count("subscriptions", protocol="rest") == 0


class TestAuthorisedAgain:
    """What changes while a read waits counts when it would deliver."""

    LIVE: tuple[Way, ...] = (long_poll, waiting_subscription)

    async def pending(self, door: Any, way: Way, token: str) -> asyncio.Task[list[bytes | None]]:
        """The way out, waiting at the end of an empty topic."""
        await door.engine.create_topic("orders", 1, {})
        task = asyncio.create_task(way(door, await door.session(token=token)))
        await door.until(lambda: bool(door.engine._watchers))
        return task

    @pytest.mark.parametrize("way", LIVE)
    async def test_nothing_changed(self, door: Any, way: Way) -> None:
        task = await self.pending(door, way, door.token("eu-reader"))
        await door.publish("orders", ("eu/1", "v"))
        assert await task == [b"eu/1"]

    @pytest.mark.parametrize("way", LIVE)
    async def test_records_it_may_not_have_do_not_wake_it(self, door: Any, way: Way) -> None:
        task = await self.pending(door, way, door.token("eu-reader"))
        for _ in range(3):
            await door.publish("orders", ("us/1", "v"))
            await door.until(lambda: bool(door.engine._watchers))
        assert not task.done()
        await door.publish("orders", ("eu/1", "v"))
        assert await task == [b"eu/1"]

    @pytest.mark.parametrize("way", LIVE)
    async def test_the_right_is_taken_away(self, door: Any, way: Way) -> None:
        task = await self.pending(door, way, door.token("eu-reader"))
        door.grant(NO_READ)
        await door.publish("orders", ("eu/1", "v"))
        with pytest.raises(AccessDenied):
            await task

    @pytest.mark.parametrize("way", LIVE)
    async def test_the_keys_change(self, door: Any, way: Way) -> None:
        task = await self.pending(door, way, door.token("eu-reader"))
        door.grant(OTHER_KEYS)
        await door.publish("orders", ("eu/1", "v"), ("us/1", "v"))
        assert await task == [b"us/1"]

    @pytest.mark.parametrize("way", LIVE)
    async def test_the_token_is_revoked(self, door: Any, way: Way) -> None:
        token = door.token("eu-reader")
        task = await self.pending(door, way, token)
        door.revoke(token)
        await door.publish("orders", ("eu/1", "v"))
        with pytest.raises(TokenRevoked):
            await task

    @pytest.mark.parametrize("way", LIVE)
    async def test_the_token_ends(self, door: Any, way: Way) -> None:
        task = await self.pending(door, way, door.token("eu-reader", ttl_ms=60_000))
        door.clock.ahead_ms = 60_000
        await door.publish("orders", ("eu/1", "v"))
        with pytest.raises(TokenExpired):
            await task

    async def test_a_feed_of_one_key_loses_it(self, door: Any) -> None:
        await door.engine.create_topic("orders", 1, {})
        feed = await door.pipeline.subscribe(await door.session("eu-reader"), "orders", b"eu/1", "earliest")
        await door.publish("orders", ("eu/1", "v"))
        door.grant(OTHER_KEYS)
        with pytest.raises(AccessDenied):
            await of_feed(feed)

    async def test_a_feed_is_refused_before_it_waits(self, door: Any) -> None:
        await door.engine.create_topic("orders", 1, {})
        feed = await door.pipeline.subscribe(await door.session("eu-reader"), "orders", None, "latest")
        door.grant(NO_READ)
        with pytest.raises(AccessDenied):
            await of_feed(feed, 30_000)

    async def test_the_latest_of_an_address_read_while_the_right_goes(self, door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        await door.publish("orders", ("eu/1", "v"))
        find = door.engine.find_latest

        async def slow(*arguments: Any) -> Any:
            found = await find(*arguments)
            door.grant(NO_READ)
            return found

        monkeypatch.setattr(door.engine, "find_latest", slow)
        with pytest.raises(AccessDenied):
            await door.pipeline.latest(await door.session("eu-reader"), "orders", b"eu/1")

    async def test_publishing_with_a_revoked_token(self, door: Any) -> None:
        token = door.token("admin")
        session = await door.session(token=token)
        door.revoke(token)
        with pytest.raises(TokenRevoked):
            await door.pipeline.publish(session, "orders", [record()])


class TestTopics:
    async def test_the_whole_life(self, door: Any) -> None:
        session = await door.session()
        pipeline = door.pipeline
        made = await pipeline.create_topic(session, "orders", 2, {"max.message.bytes": "9999"})
        assert (made.partitions, made.configs) == (2, {"max.message.bytes": "9999"})
        assert (await pipeline.create_topic(session, "other", None, {})).partitions == 4
        altered = await pipeline.alter_topic(session, "orders", 3, {"max.message.bytes": None})
        assert (altered.partitions, altered.configs) == (3, {})
        topic, offsets = pipeline.describe_topic(session, "orders")
        assert (topic.name, len(offsets)) == ("orders", 3)
        assert [found.name for found in pipeline.list_topics(session)] == ["orders", "other"]
        await pipeline.delete_topic(session, "orders")
        assert [found.name for found in pipeline.list_topics(session)] == ["other"]
        assert [entry[2] for entry in door.audited] == ["create", "create", "alter", "delete"]

    async def test_who_may_describe_nothing_sees_nothing(self, door: Any) -> None:
        await door.publish("orders", ("k", "v"))
        await door.publish("secrets", ("k", "v"))
        assert door.pipeline.list_topics(await door.session("eu-writer")) == []
        assert [found.name for found in door.pipeline.list_topics(await door.session("orders-reader"))] == ["orders"]

    @pytest.mark.parametrize(
        "operation",
        [
            lambda pipeline, session: pipeline.describe_topic(session, "orders"),
            lambda pipeline, session: pipeline.create_topic(session, "orders", 1, {}),
            lambda pipeline, session: pipeline.alter_topic(session, "orders", 9, {}),
            lambda pipeline, session: pipeline.delete_topic(session, "orders"),
        ],
    )
    async def test_without_the_right_existing_or_not(self, door: Any, operation: Any) -> None:
        session = await door.session("eu-writer")

        async def attempt() -> None:
            found = operation(door.pipeline, session)
            if asyncio.iscoroutine(found):
                await found

        async def refusal() -> str:
            with pytest.raises(AccessDenied) as refused:
                await attempt()
            return str(refused.value)

        missing = await refusal()
        await door.publish("orders", ("k", "v"))
        assert await refusal() == missing
        assert door.engine.topics()["orders"].partitions == 4

    @pytest.mark.parametrize("name", ["", "a b", "a/b", ".", "..", "x" * 250, "ä", "a\n"])
    async def test_illegal_names(self, door: Any, name: str) -> None:
        session = await door.session()
        for refused in (
            door.pipeline.publish(session, name, [record()]),
            door.pipeline.create_topic(session, name, 1, {}),
            door.pipeline.subscribe(session, name, None, "earliest"),
        ):
            with pytest.raises(IllegalTopicName):
                await refused
        assert not door.engine.topics()


class TestNode:
    async def test_node_actions_need_their_role(self, door: Any) -> None:
        door.pipeline.require(await door.session("monitor"), Action.METRICS)
        for action in (Action.TOKENS, Action.ADMIN):
            with pytest.raises(AccessDenied):
                door.pipeline.require(await door.session("monitor"), action)

    async def test_nobody_hands_on_more_than_they_have(self, door: Any) -> None:
        pipeline = door.pipeline
        narrowed = [Scope.parse("read:orders")]
        pipeline.require_grantable(await door.session("admin"), ["anything"], None, None)
        maker = await door.session("token-maker", "publisher")
        pipeline.require_grantable(maker, ["publisher"], None, None)
        pipeline.require_grantable(maker, ["publisher", "token-maker"], narrowed, None)
        with pytest.raises(AccessDenied, match="does not hold the roles admin"):
            pipeline.require_grantable(maker, ["publisher", "admin"], None, None)
        scoped = await door.session("admin", scopes=["read:orders", "tokens:*"])
        pipeline.require_grantable(scoped, ["admin"], narrowed, None)
        for scopes in (None, [Scope.parse("read:*")], [*narrowed, Scope.parse("publish:orders")]):
            with pytest.raises(AccessDenied):
                pipeline.require_grantable(scoped, ["admin"], scopes, None)
        passing = await door.session("admin", ttl_ms=60_000)
        pipeline.require_grantable(passing, ["admin"], None, 1_000)
        for ttl_ms in (None, 60_001):
            with pytest.raises(AccessDenied, match="outlive"):
                pipeline.require_grantable(passing, ["admin"], None, ttl_ms)
