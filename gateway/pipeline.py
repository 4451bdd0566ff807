"""The one way through. Every endpoint calls these functions and nothing beside them, so no protocol can forget a step.

    in:    1 identify   2 authorise   3 admit   4 validate   5 append   6 audit   7 acknowledge
    out:   1 identify   2 authorise   3 read (the engine decrypts)   4 authorise again and cut   5 pace   6 deliver

A decision is *all*, *none* or *some keys*. *All* passes unopened. *Some keys* on the way in: one forbidden key refuses the whole
request. On the way out: forbidden records are cut, the others keep their offsets.

Whatever waited is authorised again after the wait, and between that and the return nothing awaits: what a changed policy, a
revoked token or its expiry no longer allows is not delivered, however long the read was pending.

Rights come before existence: who has no right on a topic is refused alike whether there is one of that name or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from broker.broker import Broker, Outgoing, Page
from broker.delivery.position import AtTime, Position
from broker.delivery.subscription import record_bytes
from broker.engine.base import PartitionOffsets, Topic
from broker.errors import IllegalTopicName
from broker.record import RESERVED_HEADER_PREFIX, Record, valid_message_id
from broker.seams import Clock
from broker.topics.addresses import legal_topic_name
from gateway.errors import Busy, RecordInvalid, RequestInvalid
from gateway.feed import Feed
from security.errors import AccessDenied, IdentityProblem, QuotaExceeded
from security.identity.chain import Chain, Credential
from security.policy.model import NODE_ACTIONS, Action, Decision, Scope
from security.policy.quotas import Quota, Quotas
from security.policy.rbac import PolicyEngine
from security.principal import Session

TIMESTAMP_MS_MAX = 253_402_300_799_999  # the last millisecond that RFC 3339 can write
RETRY_AFTER_MS = 100  # some ten group commits
_RESERVED = RESERVED_HEADER_PREFIX.encode()

TOPIC_CHARS_SHOWN = 249  # a name may be anything until it is found to be illegal

Incoming: TypeAlias = Outgoing
PartitionStart: TypeAlias = int | Literal["earliest", "latest"] | AtTime


class Receipt(msgspec.Struct, gc=False, omit_defaults=True):
    """Where a record landed. With acks none there is no offset yet: -1, which JSON leaves out."""

    message_id: str = msgspec.field(name="id")
    topic: str
    partition: int
    offset: int = -1


class PipelineOptions(msgspec.Struct, frozen=True):
    """`record_headers_max` bounds a record's headers; `publishes_max` and `feeds_max` what is under way at once, node-wide."""

    record_headers_max: int = 100
    publishes_max: int = 4_096
    feeds_max: int = 10_000


class Listener(Protocol):
    """What the pipeline asks of the listener that a credential came by."""

    @property
    def anonymous(self) -> bool: ...


class Audit(Protocol):
    """Takes what happened; must not block."""

    def record(self, event: str, session: Session | None, action: str, resource: str, outcome: str, reason: str) -> None: ...


class Counter(Protocol):
    def labels(self, *values: str) -> Any: ...


class Counters(Protocol):
    """The metrics that are counted here, for all protocols alike; each has the label `protocol`."""

    @property
    def records_in_total(self) -> Counter: ...
    @property
    def bytes_in_total(self) -> Counter: ...
    @property
    def records_out_total(self) -> Counter: ...
    @property
    def bytes_out_total(self) -> Counter: ...
    @property
    def subscriptions(self) -> Counter: ...


class Pipeline:
    """The steps, and the operations made of them. Errors: the trees of security, the broker and the gateway."""

    def __init__(
        self,
        broker: Broker,
        policy: PolicyEngine,
        chain: Chain,
        quotas: Quotas,
        audit: Audit,
        clock: Clock,
        metrics: Counters,
        options: PipelineOptions,
    ) -> None:
        self.broker, self.policy, self.chain, self.quotas = broker, policy, chain, quotas
        self.clock, self.metrics, self.options = clock, metrics, options
        self._audit = audit
        self._publishes = 0
        self.feeds = 0

    # The steps on the way in, in their order

    async def identify(self, credential: Credential, *, peer: str, protocol: str, listener: Listener, id: str) -> Session:
        """1. Who this is; `id` is the request's or the connection's. Raises IdentityProblem."""
        try:
            principal = await self.chain.authenticate(credential, anonymous_allowed=listener.anonymous)
        except IdentityProblem as refusal:
            self._audit.record("identity", None, "identify", peer, "refused", f"{protocol}: {refusal}")
            raise
        return Session(principal, peer, protocol, id)

    def authorise(self, session: Session, action: Action, topic: str = "") -> Decision:
        """2. All or some keys. AccessDenied for none, IdentityProblem where the credential holds no longer, IllegalTopicName."""
        self.chain.still_valid(session.principal)
        decision = self.policy.decide(session.principal, action, topic, self.clock.now_ms())
        if decision.form is Decision.NONE:
            told = action in NODE_ACTIONS or self._may(session, Action.DESCRIBE, topic)
            raise self._denied(session, action, topic, decision.reason, told=told)
        if action not in NODE_ACTIONS and topic not in self.broker.topics() and not legal_topic_name(topic):
            raise IllegalTopicName(topic)
        return decision

    def authorise_key(self, session: Session, topic: str, key: bytes | None) -> Decision:
        """2, for reading one key, of which None is the null key. The refusal does not repeat the key: it is data."""
        decision = self.authorise(session, Action.READ, topic)
        if not decision.allows(key):
            raise self._denied(session, Action.READ, topic, f"not this key of it: {decision.reason}")
        return decision

    def admit(self, session: Session, records: Sequence[Incoming]) -> int:
        """3. Charges one request and the records' bytes, which are returned. Raises QuotaExceeded, Busy."""
        if self._publishes >= self.options.publishes_max:
            raise Busy("pipeline.publishes_max", self.options.publishes_max, RETRY_AFTER_MS)
        size = sum([len(record.value or b"") + len(record.key or b"") for record in records])
        self.charge(session, Quota.REQUESTS, 1)
        self.charge(session, Quota.BYTES_IN, size)
        return size

    def validate(self, session: Session, topic: str, records: Sequence[Incoming], decision: Decision) -> None:
        """4. Keys, ids, timestamps and headers. Raises AccessDenied, RecordInvalid, RequestInvalid."""
        if not records:
            raise RequestInvalid("there is no record to publish")
        if decision.form is not Decision.ALL:
            self._check_keys(session, topic, records, decision)
        checked: object = ()
        for index, record in enumerate(records):
            if record.message_id is not None and not valid_message_id(record.message_id):
                raise RecordInvalid(index, "its id is no UUIDv7 in lower case (RFC 9562); leave it out to be given one")
            if record.timestamp_ms is not None and not 0 <= record.timestamp_ms <= TIMESTAMP_MS_MAX:
                raise RecordInvalid(index, f"its timestamp is not from 0 to {TIMESTAMP_MS_MAX}, in milliseconds since 1970")
            if record.headers is not checked:  # edges share one object among records with the same headers
                checked = record.headers
                self._check_headers(index, record.headers)

    async def append(self, session: Session, topic: str, records: Sequence[Incoming], durable: bool) -> list[tuple[int, int]]:
        """5. Partition and offset of each, from one append; makes the topic where the principal and the options allow it."""
        create = topic not in self.broker.topics() and self._may(session, Action.CREATE, topic)
        self._publishes += 1
        try:
            return await self.broker.publish(topic, records, durable=durable, auto_create=create)
        finally:
            self._publishes -= 1

    def audit(self, session: Session, action: Action, resource: str) -> None:
        """6. What was done. What cannot be audited is not acknowledged."""
        self._audit.record("access", session, action, resource, "allowed", "")

    def acknowledge(
        self, session: Session, topic: str, records: Sequence[Incoming], places: Sequence[tuple[int, int]], durable: bool
    ) -> list[Receipt]:
        """7. A receipt for each record, in their order; without an offset where nothing is promised."""
        self.metrics.records_in_total.labels(session.protocol).inc(len(records))
        return [
            Receipt(record.message_id or "", topic, partition, offset if durable else -1)
            for record, (partition, offset) in zip(records, places, strict=True)
        ]

    # Those that the way out has beside them

    async def fetch(
        self, session: Session, topic: str, partition: int, offset: int, records_max: int, bytes_max: int, wait_max_ms: int
    ) -> Page:
        """3 and 4. Records that may be delivered; waits while there is none, and authorises after each wait."""
        deadline_ms = self.clock.monotonic_ms() + wait_max_ms
        while True:
            left_ms = max(0, deadline_ms - self.clock.monotonic_ms())
            page = await self.broker.fetch(
                topic, partition, offset, records_max=records_max, bytes_max=bytes_max, wait_max_ms=left_ms
            )
            decision = self.authorise(session, Action.READ, topic)
            if decision.form is not Decision.ALL:
                page.records = [record for record in page.records if decision.allows(record.key)]
            if page.records or page.damage or left_ms == 0:
                return page
            offset = page.next_offset

    def pace(self, session: Session, size_bytes: int) -> None:
        """5. Charges what is about to be delivered. Raises QuotaExceeded. (A feed waits instead.)"""
        self.charge(session, Quota.BYTES_OUT, size_bytes)

    def deliver(self, session: Session, records: int, size_bytes: int) -> None:
        """6. Counts what the protocol writes in this same turn of the loop."""
        self.metrics.records_out_total.labels(session.protocol).inc(records)
        self.metrics.bytes_out_total.labels(session.protocol).inc(size_bytes)

    # In: the seven steps, one after the other

    async def publish(self, session: Session, topic: str, records: Sequence[Incoming], *, durable: bool = True) -> list[Receipt]:
        """All records or none. Fills in their ids, timestamps and partitions."""
        decision = self.authorise(session, Action.PUBLISH, topic)
        size = self.admit(session, records)
        self.validate(session, topic, records, decision)
        places = await self.append(session, topic, records, durable)
        self.audit(session, Action.PUBLISH, topic)
        self.metrics.bytes_in_total.labels(session.protocol).inc(size)
        return self.acknowledge(session, topic, records, places, durable)

    # Out

    async def read(
        self,
        session: Session,
        topic: str,
        partition: int,
        offset: PartitionStart,
        *,
        records_max: int,
        bytes_max: int,
        wait_max_ms: int,
    ) -> Page:
        """Records of one partition, in offset order; waits while there is none that may be delivered."""
        self.authorise(session, Action.READ, topic)
        self.charge(session, Quota.REQUESTS, 1)
        first = await self._first_offset(topic, partition, offset)
        page = await self.fetch(session, topic, partition, first, records_max, bytes_max, wait_max_ms)
        size = sum([record_bytes(record) for record in page.records])
        self.pace(session, size)
        self.deliver(session, len(page.records), size)
        return page

    async def latest(self, session: Session, topic: str, key: bytes | None) -> tuple[int, Record] | None:
        """Partition and newest record of an address; a key of None is the null key. A forbidden key is refused, read or not."""
        self.authorise_key(session, topic, key)
        self.charge(session, Quota.REQUESTS, 1)
        found = await self.broker.latest(topic, key)
        self.authorise_key(session, topic, key)
        if found is not None:
            self.pace(session, record_bytes(found[1]))
            self.deliver(session, 1, record_bytes(found[1]))
        return found

    async def subscribe(self, session: Session, topic: str, key: bytes | None, position: Position) -> Feed:
        """A feed of the topic (key None), cut to what is allowed, or of one allowed key. Close it."""
        if key is None:
            self.authorise(session, Action.READ, topic)
        else:
            self.authorise_key(session, topic, key)
        self.charge(session, Quota.REQUESTS, 1)
        subscription = await self.broker.subscribe(topic, key, position)
        if self.feeds >= self.options.feeds_max:
            raise Busy("pipeline.feeds_max", self.options.feeds_max, RETRY_AFTER_MS)
        return Feed(self, session, topic, key, subscription)

    # Topics

    def list_topics(self, session: Session) -> list[Topic]:
        """Those that the principal may describe, by name."""
        self.chain.still_valid(session.principal)
        self.charge(session, Quota.REQUESTS, 1)
        topics = self.broker.topics()
        return [topics[name] for name in sorted(topics) if self._may(session, Action.DESCRIBE, name)]

    def describe_topic(self, session: Session, name: str) -> tuple[Topic, list[PartitionOffsets]]:
        self.authorise(session, Action.DESCRIBE, name)
        self.charge(session, Quota.REQUESTS, 1)
        return self.broker.topic(name), self.broker.offsets(name)

    async def create_topic(self, session: Session, name: str, partitions: int | None, configs: Mapping[str, str]) -> Topic:
        self.authorise(session, Action.CREATE, name)
        self.charge(session, Quota.REQUESTS, 1)
        topic = await self.broker.create_topic(name, partitions, configs)
        self.audit(session, Action.CREATE, name)
        return topic

    async def alter_topic(self, session: Session, name: str, partitions: int | None, configs: Mapping[str, str | None]) -> Topic:
        self.authorise(session, Action.ALTER, name)
        self.charge(session, Quota.REQUESTS, 1)
        topic = await self.broker.alter_topic(name, partitions=partitions, configs=configs)
        self.audit(session, Action.ALTER, name)
        return topic

    async def delete_topic(self, session: Session, name: str) -> None:
        self.authorise(session, Action.DELETE, name)
        self.charge(session, Quota.REQUESTS, 1)
        await self.broker.delete_topic(name)
        self.audit(session, Action.DELETE, name)

    # The node

    def require(self, session: Session, action: Action, what: str = "the node") -> None:
        """An action about the node: metrics, tokens, admin. `what` is done, or to what, for the audit trail."""
        self.authorise(session, action)
        self.charge(session, Quota.REQUESTS, 1)
        self.audit(session, action, what)

    def require_grantable(
        self, session: Session, roles: Sequence[str], scopes: Sequence[Scope] | None, ttl_ms: int | None
    ) -> None:
        """Nobody hands on more than they have: their roles, the scopes they were narrowed to, the time that is left to them."""
        held = self.policy.policy.roles_of(session.principal)
        narrowed, ends_ms = session.principal.scopes, session.principal.expires_at_ms
        missing = sorted(set(roles) - set(held))
        if missing and not self._may(session, Action.ADMIN):
            raise self._denied(session, Action.TOKENS, "", f"it does not hold the roles {', '.join(missing)} itself")
        if narrowed is not None and (scopes is None or not set(map(str, scopes)) <= set(map(str, narrowed))):
            raise self._denied(session, Action.TOKENS, "", "its own scopes do not include those of the new token")
        if ends_ms is not None and (ttl_ms is None or self.clock.now_ms() + ttl_ms > ends_ms):
            raise self._denied(session, Action.TOKENS, "", "the new token would outlive it")

    # Parts of the steps

    def charge(self, session: Session, quota: Quota, cost: float) -> None:
        """Raises QuotaExceeded, with nothing charged."""
        wait_ms = self.owed_ms(session, quota, cost)
        if wait_ms:
            raise QuotaExceeded(session.principal.name, quota, wait_ms)

    def owed_ms(self, session: Session, quota: Quota, cost: float) -> int:
        """0 and it is charged, or how long to wait before it would be."""
        return self.quotas.admit(quota, session.principal.name, cost, self.clock.monotonic_ms() * 1_000_000)

    def _may(self, session: Session, action: Action, topic: str = "") -> bool:
        decision = self.policy.decide(session.principal, action, topic, self.clock.now_ms())
        return decision.form is Decision.ALL

    def _denied(self, session: Session, action: Action, topic: str, reason: str, *, told: bool = True) -> AccessDenied:
        """The reason may name roles made for this topic: who knows nothing of the topic is not told, the audit trail is."""
        resource = "the node" if action in NODE_ACTIONS else f"topic {topic[:TOPIC_CHARS_SHOWN]}"
        self._audit.record("access", session, action, resource, "denied", reason)
        return AccessDenied(session.principal.name, action, resource, reason if told else "nothing it holds allows it")

    def _check_keys(self, session: Session, topic: str, records: Sequence[Incoming], decision: Decision) -> None:
        for index, record in enumerate(records):
            if not decision.allows(record.key):
                reason = f"not the key of record {index}: {decision.reason}"
                raise self._denied(session, Action.PUBLISH, topic, reason)

    def _check_headers(self, index: int, headers: Sequence[tuple[bytes, bytes | None]]) -> None:
        if len(headers) > self.options.record_headers_max:
            limit = self.options.record_headers_max
            raise RecordInvalid(index, f"it has {len(headers)} headers; pipeline.record_headers_max allows {limit}")
        for name, _ in headers:
            if name[: len(_RESERVED)].lower() == _RESERVED:
                raise RecordInvalid(index, f"header names that begin with {RESERVED_HEADER_PREFIX} are the node's own")

    async def _first_offset(self, topic: str, partition: int, start: PartitionStart) -> int:
        if isinstance(start, int):
            return start
        if isinstance(start, AtTime):
            return await self.broker.offset_for_time(topic, partition, start.timestamp_ms)
        offsets = self.broker.partition_offsets(topic, partition)
        return offsets.log_start if start == "earliest" else offsets.high_watermark
