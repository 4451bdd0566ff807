"""The one way through. Every endpoint calls these functions and nothing beside them, so no protocol can forget a step.

    in:    1 identify   2 authorise   3 admit   4 validate   5 append   6 audit   7 acknowledge
    out:   1 identify   2 authorise   3 read (the engine decrypts)   4 authorise again and cut   5 pace   6 deliver

A decision is *all*, *none* or *some keys*. *All* passes unopened. *Some keys* on the way in: one forbidden key refuses the whole
request. On the way out: forbidden records are cut, the others keep their offsets.

Whatever waited is authorised again after the wait, and between that and the return nothing awaits: what a changed policy, a
revoked token or its expiry no longer allows is not delivered, however long the read was pending.

Whole batches, as Kafka clients send and ask for them, go the same ways in `gateway/producing.py` and `gateway/fetching.py`.

Rights come before existence: who has no right on a topic is refused alike whether there is one of that name or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, overload

import msgspec

from broker.broker import Broker, Outgoing, Page
from broker.columns import Columns
from broker.delivery.consumer_options import ConsumerOptions
from broker.delivery.consumers import ConsumerInfo
from broker.delivery.expiry import TTL_MS_MAX
from broker.delivery.filter import Filter
from broker.delivery.position import AtTime, Position
from broker.delivery.subscription import record_bytes
from broker.engine.base import KeyCopy, PartitionOffsets, Topic
from broker.errors import IllegalTopicName, UnknownTopic
from broker.produced import RECORDS_MAX
from broker.record import RESERVED_HEADER_PREFIX, Record, valid_message_id
from broker.seams import Clock
from broker.topics.addresses import legal_topic_name
from broker.topics.configs import DEAD_LETTER_TOPIC
from gateway.consumer_feed import ConsumerFeed
from gateway.errors import Busy, RecordInvalid, RequestInvalid
from gateway.feed import Feed, FilterRights, TopicRights
from gateway.fetching import Fetching
from gateway.producing import Producing
from security.errors import AccessDenied, CredentialsInvalid, IdentityProblem, LoginsThrottled, QuotaExceeded, SecurityError
from security.identity.chain import Chain, Credential
from security.identity.failed_logins import FailedLoginOptions, FailedLogins, address_of, claimed_name
from security.policy.model import NODE_ACTIONS, Action, Decision, Scope
from security.policy.quotas import Quota, Quotas
from security.policy.rbac import PolicyEngine
from security.principal import Principal, Session

TIMESTAMP_MS_MAX = 253_402_300_799_999  # the last millisecond that RFC 3339 can write
RETRY_AFTER_MS = 100  # some ten group commits
_RESERVED = RESERVED_HEADER_PREFIX.encode()

TOPIC_CHARS_SHOWN = 249  # a name may be anything until it is found to be illegal

Incoming: TypeAlias = Outgoing
Publication: TypeAlias = Sequence[Incoming] | Columns  # what one publish brings: records, or columns of them
PartitionStart: TypeAlias = int | Literal["earliest", "latest"] | AtTime


class Receipt(msgspec.Struct, gc=False, omit_defaults=True):
    """Where a record landed. With acks none there is no offset yet: -1, which JSON leaves out."""

    message_id: str = msgspec.field(name="id")
    topic: str
    partition: int
    offset: int = -1


class ColumnReceipts(Sequence[Receipt]):
    """The receipts of columns, made one by one only where they are asked for."""

    __slots__ = ("_durable", "_head", "_lasts", "_places", "_topic")

    def __init__(self, topic: str, ids: tuple[str, Sequence[str]], places: Sequence[tuple[int, int]], durable: bool) -> None:
        self._topic, self._places, self._durable = topic, places, durable
        self._head, self._lasts = ids

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Receipt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Receipt]: ...
    def __getitem__(self, index: int | slice) -> Receipt | list[Receipt]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        partition, offset = self._places[index]
        last = self._lasts[index % len(self._places)]  # there are more ends of ids than records
        return Receipt(self._head + last, self._topic, partition, offset if self._durable else -1)

    def json(self) -> bytes:
        """`{"records":[...]}`. A topic that was published to has a legal name: nothing in it is escaped."""
        begins, middle = f'{{"id":"{self._head}', f'","topic":"{self._topic}","partition":'
        told = zip(self._lasts, self._places, strict=False)
        if self._durable:
            records = [f'{last}{middle}{partition},"offset":{offset}' for last, (partition, offset) in told]
        else:
            records = [f"{last}{middle}{partition}" for last, (partition, _) in told]
        between = f"}},{begins}"
        return f'{{"records":[{begins}{between.join(records)}}}]}}'.encode("ascii")


class EarlierReceipts(list[Receipt]):
    """Those of the publish that came first with this idempotency key: this time nothing was stored."""


class PipelineOptions(msgspec.Struct, frozen=True):
    """`record_headers_max` bounds a record's headers, `batch_records_max` the records of a Kafka batch; `publishes_max` and
    `feeds_max` what is under way at once, node-wide."""

    record_headers_max: int = 100
    batch_records_max: int = RECORDS_MAX
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
    @property
    def logins_throttled_total(self) -> Counter: ...


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
        failed_logins: FailedLogins | None = None,
    ) -> None:
        self.broker, self.policy, self.chain, self.quotas = broker, policy, chain, quotas
        self.failed_logins = failed_logins or FailedLogins(FailedLoginOptions(), clock.monotonic_ms)
        self.clock, self.metrics, self.options = clock, metrics, options
        self._audit = audit
        self._publishes = 0
        self.feeds = 0
        self.producing = Producing(self)
        self.fetching = Fetching(self)

    # The steps on the way in, in their order

    async def identify(self, credential: Credential, *, peer: str, protocol: str, listener: Listener, id: str) -> Session:
        """1. Who this is; `id` is the request's or the connection's. Raises IdentityProblem, LoginsThrottled, StoreDamaged.

        Where many have failed it waits, before or after the judgement: `security/identity/failed_logins.py` says how long.
        """
        logins, name, address = self.failed_logins, claimed_name(credential), address_of(peer)
        try:
            if name is not None and (wait_ms := logins.wait_ms(address, name)):
                self.metrics.logins_throttled_total.labels(protocol, "delayed").inc()
                await asyncio.sleep(wait_ms / 1_000)
            principal = await self.chain.authenticate(credential, anonymous_allowed=listener.anonymous)
        except LoginsThrottled as refusal:
            self.metrics.logins_throttled_total.labels(protocol, "refused").inc()
            if not refusal.told:
                self.unidentified(refusal, peer=peer, protocol=protocol)
            raise
        except SecurityError as refusal:
            self.unidentified(refusal, peer=peer, protocol=protocol)
            if name is not None and isinstance(refusal, IdentityProblem):
                late_ms = logins.failed(address, name, guessed=isinstance(refusal, CredentialsInvalid))
                await asyncio.sleep(late_ms / 1_000)
            raise
        if name is not None:
            logins.succeeded(address, name)
        return Session(principal, peer, protocol, id)

    def unidentified(self, refusal: SecurityError, *, peer: str, protocol: str, session: Session | None = None) -> None:
        """Audits a log-in that failed, or the end of one that holds no longer; `session` is who it was before."""
        self._audit.record("identity", session, "identify", peer, "refused", f"{protocol}: {refusal}")

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

    def authorise_group(self, session: Session, group: str) -> None:
        """2, for a consumer group: using, describing and deleting it. AccessDenied, IdentityProblem."""
        self._authorise_named(session, Action.GROUP, group, "group")

    def authorise_transaction(self, session: Session, transactional_id: str) -> None:
        """2, for a transactional id. AccessDenied, IdentityProblem."""
        self._authorise_named(session, Action.TRANSACTION, transactional_id, "transactional id")

    def authorise_numbering(self, session: Session) -> None:
        """2, for a producer id: that the session may publish to some topic at all. AccessDenied, IdentityProblem."""
        self.chain.still_valid(session.principal)
        if not self._does_something(session.principal, Action.PUBLISH):
            raise self._denied(session, Action.PUBLISH, "", "none of its roles and scopes publishes to any topic")

    def may_describe(self, session: Session, topic: str) -> bool:
        """For one topic of many: not audited, nobody asked for it by name."""
        return self._may(session, Action.DESCRIBE, topic)

    def may_use_group(self, session: Session, group: str) -> bool:
        """For one group of many: not audited, nobody asked for it by name."""
        return self._may(session, Action.GROUP, group)

    def may_use_transaction(self, session: Session, transactional_id: str) -> bool:
        """For one transactional id of many: not audited, nobody asked for it by name."""
        return self._may(session, Action.TRANSACTION, transactional_id)

    def _authorise_named(self, session: Session, action: Action, name: str, what: str) -> None:
        self.chain.still_valid(session.principal)
        decision = self.policy.decide(session.principal, action, name, self.clock.now_ms())
        if decision.form is not Decision.ALL:
            resource = f"{what} {name[:TOPIC_CHARS_SHOWN]}"
            self._audit.record("access", session, action, resource, "denied", decision.reason)
            raise AccessDenied(session.principal.name, action, resource, decision.reason)

    def authorise_reading(self, session: Session, address: str, *, known: bool = False) -> None:
        """2, for a filter over topics: that the session may read some topic at all, which may be `known` for this policy.

        AccessDenied, IdentityProblem.
        """
        self.chain.still_valid(session.principal)
        if not known and not self._does_something(session.principal, Action.READ):
            raise self._denied(session, Action.READ, address, "none of its roles and scopes reads any topic")

    def decide_reading(self, session: Session, topic: str) -> Decision:
        """2, for one topic of many: what may be read of it. Not audited: nobody asked for this topic by name."""
        return self.policy.decide(session.principal, Action.READ, topic, self.clock.now_ms())

    def admit(self, session: Session, records: Publication) -> int:
        """3. Charges one request and the records' bytes, which are returned. Raises QuotaExceeded, Busy."""
        if self._publishes >= self.options.publishes_max:
            raise Busy("pipeline.publishes_max", self.options.publishes_max, RETRY_AFTER_MS)
        if isinstance(records, Columns):
            size = records.size
        else:
            size = sum([len(record.value or b"") + len(record.key or b"") for record in records])
        if not self.quotas.unlimited:
            self.charge(session, Quota.REQUESTS, 1)
            self.charge(session, Quota.BYTES_IN, size)
        return size

    def validate(self, session: Session, topic: str, records: Publication, decision: Decision) -> None:
        """4. Keys, ids, timestamps and headers. Raises AccessDenied, RecordInvalid, RequestInvalid."""
        if isinstance(records, Columns):  # never empty, without ids and timestamps of their own, with headers that edges imply
            if decision.form is not Decision.ALL:
                self.check_keys(session, topic, [key for key, _ in records.pairs()], decision)
            return
        if not records:
            raise RequestInvalid("there is no record to publish")
        if decision.form is not Decision.ALL:
            self.check_keys(session, topic, [record.key for record in records], decision)
        checked: object = ()
        for index, record in enumerate(records):
            if record.message_id is not None and not valid_message_id(record.message_id):
                raise RecordInvalid(index, "its id is no UUIDv7 in lower case (RFC 9562); leave it out to be given one")
            if record.timestamp_ms is not None and not 0 <= record.timestamp_ms <= TIMESTAMP_MS_MAX:
                raise RecordInvalid(index, f"its timestamp is not from 0 to {TIMESTAMP_MS_MAX}, in milliseconds since 1970")
            if record.expires:
                _check_expiry(index, record)
            if record.headers is not checked:  # edges share one object among records with the same headers
                checked = record.headers
                self._check_headers(index, record.headers)

    def earlier(
        self, session: Session, topic: str, records: Publication, durable: bool, idempotency_key: str | None
    ) -> EarlierReceipts | None:
        """4, for a publish that is to happen once: what it came to before. IdempotencyKeyReused, IdempotencyKeyInUse."""
        if idempotency_key is None:
            return None
        found = self.broker.idempotency.earlier(session.principal.name, topic, idempotency_key, records, durable)
        if found is None:
            return None
        landed = zip(found.ids, found.partitions, found.offsets, strict=True)
        return EarlierReceipts([Receipt(id, topic, partition, offset if durable else -1) for id, partition, offset in landed])

    async def append(
        self, session: Session, topic: str, records: Publication, durable: bool, idempotency_key: str | None = None
    ) -> list[tuple[int, int]]:
        """5. Partition and offset of each, from one append; makes the topic where the principal and the options allow it. With
        an idempotency key it is durable in any case, the key with it."""
        create = topic not in self.broker.topics() and self._may(session, Action.CREATE, topic)
        self._publishes += 1
        try:
            if idempotency_key is None:
                return await self.broker.publish(topic, records, durable=durable, auto_create=create)
            return await self.broker.idempotency.once(
                session.principal.name,
                topic,
                idempotency_key,
                records,
                durable,
                lambda changes: self.broker.publish(topic, records, durable=True, auto_create=create, changes=changes),
            )
        finally:
            self._publishes -= 1

    def audit(self, session: Session, action: Action, resource: str) -> None:
        """6. What was done. What cannot be audited is not acknowledged."""
        self._audit.record("access", session, action, resource, "allowed", "")

    def acknowledge(
        self, session: Session, topic: str, records: Publication, places: Sequence[tuple[int, int]], durable: bool
    ) -> Sequence[Receipt]:
        """7. A receipt for each record, in their order; without an offset where nothing is promised."""
        self.metrics.records_in_total.labels(session.protocol).inc(len(places))
        if isinstance(records, Columns):
            return ColumnReceipts(topic, records.ids, places, durable)
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

    async def publish(
        self,
        session: Session,
        topic: str,
        records: Publication,
        *,
        durable: bool = True,
        idempotency_key: str | None = None,
    ) -> Sequence[Receipt]:
        """All records or none. Fills in their ids, timestamps and partitions.

        With an idempotency key that this principal used on this topic before, within `idempotency.window_ms` and for the same
        records, nothing is stored and the earlier receipts are returned (EarlierReceipts).
        """
        decision = self.authorise(session, Action.PUBLISH, topic)
        size = self.admit(session, records)
        self.validate(session, topic, records, decision)
        if (receipts := self.earlier(session, topic, records, durable, idempotency_key)) is not None:
            self.audit(session, Action.PUBLISH, topic)
            return receipts
        places = await self.append(session, topic, records, durable, idempotency_key)
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
        return Feed(self, session, TopicRights(self, session, topic, key), subscription)

    async def subscribe_filter(self, session: Session, filter: Filter, position: Position) -> Feed:
        """A feed of what the filter wants of every topic it reaches, those made later too, cut to what is allowed. Close it.

        A filter that names its topic is refused as `subscribe` refuses; one of several topics where no topic at all may be read.
        """
        rights, readable = self._rights(session, filter)
        rights.require()
        self.charge(session, Quota.REQUESTS, 1)
        subscription = await self.broker.subscribe_filter(filter, position, readable=readable, version=lambda: self.policy.epoch)
        self._require_feed()
        return Feed(self, session, rights, subscription)

    async def consume(
        self,
        session: Session,
        filter: Filter,
        name: str,
        options: ConsumerOptions | None = None,
        position: Position = "latest",
    ) -> ConsumerFeed:
        """A durable consumer of the principal's own, made at `position` where there is none of the name. Close it.

        Refused as `subscribe_filter` is; ConsumerInvalid, ConsumerConflict, ConsumersFull. A dead-letter topic of its own choice
        needs the right to publish to all of it, at every opening.
        """
        options = options or ConsumerOptions()
        rights, readable = self._rights(session, filter)
        rights.require()
        self.require_dead_letters(session, options.dead_letter_topic)
        self.charge(session, Quota.REQUESTS, 1)
        self._require_feed()
        owner = session.principal.name
        consumer = await self.broker.consumers.attach(
            owner, name, filter, options, position, readable=readable, version=lambda: self.policy.epoch
        )
        try:
            self._require_feed()
            self.require_dead_letters(session, consumer.dead_letter_topic)
        except BaseException:
            consumer.close()
            raise
        return ConsumerFeed(self, session, rights, consumer)

    # Consumers: one's own, and those of others for administrators

    async def list_consumers(self, session: Session, *, everybody: bool, consumers_max: int) -> list[ConsumerInfo]:
        """By owner and name. What is told of their lag is of topics that the session may read."""
        owner = self._owner(session, "*" if everybody else None)
        return await self.broker.consumers.infos(None if everybody else owner, consumers_max, self._readable(session))

    async def describe_consumer(self, session: Session, name: str, owner: str | None = None) -> ConsumerInfo:
        """`owner` None: oneself. ConsumerUnknown."""
        return await self.broker.consumers.info(self._owner(session, owner), name, self._readable(session))

    async def seek_consumer(self, session: Session, name: str, position: Position, owner: str | None = None) -> ConsumerInfo:
        """Deliver from there; what was open is forgotten. ConsumerUnknown, and what finding the position raises.

        Refused as `consume` is: where a position is found says what there is.
        """
        owner = self._owner(session, owner)
        self._rights(session, self.broker.consumers.filter_of(owner, name))[0].require()
        info = await self.broker.consumers.seek(owner, name, position, self._readable(session))
        self._audit.record("consumer", session, "seek", f"consumer {name} of {owner}", "allowed", f"to {info.next}")
        return info

    async def give_consumer(self, session: Session, name: str, to: str, owner: str | None = None) -> None:
        """To another principal, with its position. ConsumerUnknown, ConsumerConflict, ConsumersFull.

        Needs the action admin: names of others are theirs to take, and their bound is not somebody else's to fill.
        """
        owner = self._owner(session, owner)
        self.authorise(session, Action.ADMIN)
        await self.broker.consumers.give(owner, name, to)
        self._audit.record("consumer", session, "give", f"consumer {name} of {owner}", "allowed", f"to {to}")

    async def delete_consumer(self, session: Session, name: str, owner: str | None = None) -> None:
        """ConsumerUnknown."""
        owner = self._owner(session, owner)
        await self.broker.consumers.delete(owner, name)
        self._audit.record("consumer", session, "delete", f"consumer {name} of {owner}", "allowed", "")

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

    async def create_topic(
        self, session: Session, name: str, partitions: int | None, configs: Mapping[str, str], *, validate_only: bool = False
    ) -> Topic:
        """`validate_only`: nothing is made, but whatever would be refused is."""
        self.authorise(session, Action.CREATE, name)
        self._require_graveyard(session, configs)
        self.charge(session, Quota.REQUESTS, 1)
        if validate_only:
            return self.broker.check_new_topic(name, partitions, configs)
        topic = await self.broker.create_topic(name, partitions, configs)
        self.audit(session, Action.CREATE, name)
        return topic

    async def alter_topic(
        self,
        session: Session,
        name: str,
        partitions: int | None,
        configs: Mapping[str, str | None],
        *,
        validate_only: bool = False,
    ) -> Topic:
        """`validate_only`: nothing is altered, but whatever would be refused is."""
        self.authorise(session, Action.ALTER, name)
        self._require_graveyard(session, configs)
        self.charge(session, Quota.REQUESTS, 1)
        if validate_only:
            return self.broker.check_altered(name, partitions=partitions, configs=configs)
        topic = await self.broker.alter_topic(name, partitions=partitions, configs=configs)
        self.audit(session, Action.ALTER, name)
        return topic

    async def delete_topic(self, session: Session, name: str) -> list[KeyCopy]:
        """Returns the key backups that still hold the topic's key."""
        self.authorise(session, Action.DELETE, name)
        self.charge(session, Quota.REQUESTS, 1)
        kept = await self.broker.delete_topic(name)
        self.audit(session, Action.DELETE, name)
        return kept

    async def delete_records(self, session: Session, topic: str, partition: int, before_offset: int) -> int:
        """Records below the offset (-1: all there are) go for good; the new log start."""
        self.authorise(session, Action.DELETE, topic)
        self.charge(session, Quota.REQUESTS, 1)
        log_start = await self.broker.delete_records(topic, partition, before_offset)
        self.audit(session, Action.DELETE, f"{topic}/{partition} below {log_start}")
        return log_start

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

    def require_account(self, session: Session, account: Principal, roles: Sequence[str] = ()) -> None:
        """Nobody gets into an account that may do more than they: what the policy binds to its name counts as well."""
        self.require_grantable(session, [*roles, *self.policy.policy.roles_of(account)], None, None)

    # Parts of the steps

    def charge(self, session: Session, quota: Quota, cost: float) -> None:
        """Raises QuotaExceeded, with nothing charged."""
        wait_ms = self.owed_ms(session, quota, cost)
        if wait_ms:
            raise QuotaExceeded(session.principal.name, quota, wait_ms)

    def owed_ms(self, session: Session, quota: Quota, cost: float) -> int:
        """0 and it is charged, or how long to wait before it would be."""
        if self.quotas.unlimited:
            return 0
        return self.quotas.admit(quota, session.principal.name, cost, self.clock.monotonic_ms() * 1_000_000)

    def _does_something(self, principal: Principal, action: Action) -> bool:
        policy = self.policy.policy
        held = (policy.roles[name] for name in policy.roles_of(principal) if name in policy.roles)
        if principal.scopes is not None and not any(action in scope.actions for scope in principal.scopes):
            return False
        return any(rule.effect == "allow" and action in rule.actions for role in held for rule in role.rules)

    def _rights(self, session: Session, filter: Filter) -> tuple[TopicRights | FilterRights, Callable[[str], bool] | None]:
        """What it may have of the filter, and, where that reaches several topics, which of them it may read at all."""
        if filter.topic is not None:
            return TopicRights(self, session, filter.topic, None if filter.exact is None else filter.exact[1]), None
        rights = FilterRights(self, session, filter)
        return rights, rights.readable

    def _require_feed(self) -> None:
        if self.feeds >= self.options.feeds_max:
            raise Busy("pipeline.feeds_max", self.options.feeds_max, RETRY_AFTER_MS)

    def require_dead_letters(self, session: Session, topic: str | None) -> None:
        """For a topic that the consumer names itself; the topic's own is the node's to write to."""
        if topic is None:
            return
        self._require_all_keys(session, topic)
        if topic not in self.broker.topics() and not self._may(session, Action.CREATE, topic):
            raise UnknownTopic(topic)

    def _require_graveyard(self, session: Session, configs: Mapping[str, str | None]) -> None:
        """For the topic that a config sends dead letters to: the node writes there for consumers with no right on it."""
        topic = configs.get(DEAD_LETTER_TOPIC)
        if topic and legal_topic_name(topic):  # else the config is refused
            self._require_all_keys(session, topic)
            if topic not in self.broker.topics():
                self.authorise(session, Action.CREATE, topic)

    def _require_all_keys(self, session: Session, topic: str) -> None:
        decision = self.authorise(session, Action.PUBLISH, topic)
        if decision.form is not Decision.ALL:
            raise self._denied(session, Action.PUBLISH, topic, f"dead letters need all of its keys: {decision.reason}")

    def _readable(self, session: Session) -> Callable[[str], bool]:
        return lambda topic: self.decide_reading(session, topic).form is not Decision.NONE

    def _owner(self, session: Session, owner: str | None) -> str:
        """Whose consumer is meant. Somebody else's needs the action admin. Charges one request."""
        self.chain.still_valid(session.principal)
        if owner is not None and owner != session.principal.name:
            self.authorise(session, Action.ADMIN)
        self.charge(session, Quota.REQUESTS, 1)
        return owner or session.principal.name

    def _may(self, session: Session, action: Action, topic: str = "") -> bool:
        decision = self.policy.decide(session.principal, action, topic, self.clock.now_ms())
        return decision.form is Decision.ALL

    def _denied(self, session: Session, action: Action, topic: str, reason: str, *, told: bool = True) -> AccessDenied:
        """The reason may name roles made for this topic: who knows nothing of the topic is not told, the audit trail is."""
        resource = "the node" if action in NODE_ACTIONS else f"topic {topic[:TOPIC_CHARS_SHOWN]}"
        self._audit.record("access", session, action, resource, "denied", reason)
        return AccessDenied(session.principal.name, action, resource, reason if told else "nothing it holds allows it")

    def check_keys(self, session: Session, topic: str, keys: Sequence[bytes | None], decision: Decision) -> None:
        """4, for a publisher of some keys: AccessDenied for the first one that it may not write."""
        for index, key in enumerate(keys):
            if not decision.allows(key):
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


def _check_expiry(index: int, record: Incoming) -> None:
    if record.ttl_ms is not None and not 1 <= record.ttl_ms <= TTL_MS_MAX:
        raise RecordInvalid(index, f"its ttl_ms is not from 1 to {TTL_MS_MAX}, ten years; leave it out to keep the record")
    if record.expires_at_ms is not None and not 0 <= record.expires_at_ms <= TIMESTAMP_MS_MAX:
        raise RecordInvalid(index, f"its expires_at is not from 0 to {TIMESTAMP_MS_MAX}, in milliseconds since 1970")
    if record.ttl_ms is not None and record.expires_at_ms is not None:
        raise RecordInvalid(index, "it has both ttl_ms and expires_at")
