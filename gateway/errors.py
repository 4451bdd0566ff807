"""What the gateway itself refuses, and the one table that says every refusal in every protocol's words.

GatewayError
├── RequestInvalid              the request contradicts the interface
│   ├── BodyMalformed               no UTF-8, no JSON, or not of the shape asked for
│   ├── ParameterInvalid            a query parameter, header or path segment
│   ├── RecordInvalid               one record of the request, by its index
│   └── EventInvalid                one attribute of a CloudEvent, by its name
├── BodyTooLarge
├── MediaTypeUnsupported
├── ContentEncodingUnsupported
├── RouteUnknown
├── MethodNotAllowed
├── OriginRefused               a page of another origin
├── PartitionNotThere           named in a document, where UnknownPartition is one of the path
├── NoRecord                    nothing is stored at this address
├── NoDeadLetter                no dead letter at this place
├── NotDeadLetters              no dead-letter topic, so nothing is purged
├── Busy                        a bound on work at the same time is reached: retry later
├── Draining                    the node is stopping: what waits is ended
└── ClientGone                  nobody is left to answer

Refusals of the broker and of security keep their own words: `TABLE` adds only what a protocol needs around them. An exception
that is not in the table is a bug of ours. Its text may hold anything, so callers get none of it, and the log all of it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from broker import batch_errors as batch
from broker import errors as broker
from broker.delivery import consumer_errors as consumers
from broker.delivery.filter import FilterInvalid
from broker.delivery.position import CursorAhead, CursorUnknown, PositionRefused
from broker.groups import group_errors as groups
from broker.producers import errors as producers
from gateway.wire.kafka.error_codes import ErrorCode
from security import errors as security
from security.identity.document_file import StoreBusy, StoreDamaged, StoreFull
from security.identity.token_file import TokenStoreBusy, TokenStoreDamaged, TokenStoreFull
from security.identity.tokens import TokenUnknown
from security.identity.user_file import UserStoreBusy, UserStoreDamaged, UserStoreFull
from security.identity.users import UserExists, UserUnknown
from security.policy.mapping import PolicyInvalid
from security.policy.model import NODE_ACTIONS, Action

logger = logging.getLogger(__name__)

Failure = TypeVar("Failure", bound=BaseException)


class GatewayError(Exception):
    """Root of the gateway's errors."""


class RequestInvalid(GatewayError):
    """The caller can mend it: the message says what and where."""


REASON_CHARS_MAX = 300
"""Decoders quote what they cannot read, which may be all of it."""


def _bounded(reason: str) -> str:
    return reason if len(reason) <= REASON_CHARS_MAX else f"{reason[: REASON_CHARS_MAX - 3]}..."


class BodyMalformed(RequestInvalid):
    """`where` is "byte 17", "line 3" or a path such as "$[3].key"; None where the whole body is meant."""

    def __init__(self, reason: str, where: str | None = None) -> None:
        self.reason, self.where = _bounded(reason), where
        super().__init__(f"the body cannot be read: {self.reason}" + (f", at {where}" if where else ""))


class ParameterInvalid(RequestInvalid):
    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"{name}: {reason}")


class RecordInvalid(RequestInvalid):
    """`index` counts the records of the request from 0."""

    def __init__(self, index: int, reason: str) -> None:
        self.index, self.reason = index, reason
        super().__init__(f"record {index} of the request: {reason}; none of the request's records was stored")


class EventInvalid(RequestInvalid):
    """`index` counts the events of a batch from 0; None where there is one."""

    def __init__(self, attribute: str, reason: str, index: int | None = None) -> None:
        self.attribute, self.reason, self.index = attribute[:80], reason, index
        which = "the event's" if index is None else f"event {index} of the batch:"
        super().__init__(f"{which} attribute {self.attribute!r}: {reason} (CloudEvents 1.0); nothing of the request was stored")


class BodyTooLarge(GatewayError):
    """`unit` is what is counted: bytes, records, headers."""

    def __init__(self, limit_name: str, limit: int, unit: str = "bytes") -> None:
        self.limit_name, self.limit, self.unit = limit_name, limit, unit
        super().__init__(f"{limit_name} allows {limit} {unit} in one request; send it in several requests")


class MediaTypeUnsupported(GatewayError):
    def __init__(self, media_type: str, supported: Sequence[str]) -> None:
        self.media_type, self.supported = media_type, tuple(supported)
        super().__init__(f"content type {media_type[:80]!r} is not understood here; send {' or '.join(supported)}")


class ContentEncodingUnsupported(GatewayError):
    def __init__(self, coding: str, supported: Sequence[str]) -> None:
        self.coding, self.supported = coding[:80], tuple(supported)
        super().__init__(f"content encoding {self.coding!r} is not understood here; send {', '.join(supported)} or none")


class RouteUnknown(GatewayError):
    def __init__(self) -> None:
        super().__init__("there is nothing at this path; paths begin with /v1/topics, /v1/records, /v1/tokens or /v1/node")


class MethodNotAllowed(GatewayError):
    def __init__(self, method: str, allowed: Sequence[str]) -> None:
        self.method, self.allowed = method, tuple(allowed)
        super().__init__(f"{method[:20]} is not possible here; use {', '.join(allowed)}")


class OriginRefused(GatewayError):
    def __init__(self, origin: str) -> None:
        self.origin = origin[:200]
        super().__init__(f"pages of {self.origin!r} may not call this node; add the origin to rest.origins if they should")


class PartitionNotThere(GatewayError):
    """The resource of the path is there, so 404 would lie: the document contradicts it."""

    def __init__(self, topic: str, partition: int, partitions: int) -> None:
        self.topic, self.partition, self.partitions = topic, partition, partitions
        super().__init__(f"topic {topic!r} has partitions 0 to {partitions - 1}, not {partition}")


class NoRecord(GatewayError):
    """Also where there are records of which the caller may see none."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(f"no record at this address of topic {topic!r}; publish one, or check the key")


class NoDeadLetter(GatewayError):
    """There is no dead letter at this place, or none that the caller may see."""

    def __init__(self, topic: str, partition: int, offset: int) -> None:
        self.topic, self.partition, self.offset = topic, partition, offset
        super().__init__(f"no dead letter at {topic}/{partition}/{offset}: `sprawl dlq list {topic}` shows those that there are")


class NotDeadLetters(GatewayError):
    """Dead letters were to be purged of a topic to which none go."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        super().__init__(f"topic {topic!r} is no dead-letter topic: nothing was deleted; `sprawl dlq list` shows those that are")


class Busy(GatewayError):
    def __init__(self, limit_name: str, limit: int, retry_after_ms: int) -> None:
        self.limit_name, self.limit, self.retry_after_ms = limit_name, limit, retry_after_ms
        super().__init__(f"{limit_name} ({limit}) is reached; retry in {retry_after_ms} ms")


class Draining(GatewayError):
    def __init__(self) -> None:
        super().__init__("the node is stopping; connect again in a moment")


class ClientGone(GatewayError):
    def __init__(self) -> None:
        super().__init__("the client closed the connection")


class Translation(msgspec.Struct, frozen=True):
    """One row: a refusal in the words of each protocol.

    `slug` is the last part of the problem type and the error code of WebSocket messages. `websocket_close` is the close
    code (RFC 6455, 7.4; 4000-4999 are ours) where the whole connection ends with it, None where only the operation fails.
    `facts` are the error's fields that become members of the problem. `detail` replaces the error's own text where that is
    not the caller's business, and then the error is logged.
    """

    status: int
    slug: str
    title: str
    facts: tuple[str, ...] = ()
    websocket_close: int | None = None
    detail: str | None = None


GOING_AWAY, TOO_BIG, INTERNAL = 1001, 1009, 1011
UNAUTHENTICATED, REVOKED, TOO_MUCH = 4401, 4403, 4429

_ASK_OPERATOR = "the node's log says more: give whoever runs it this answer's instance"

UNEXPECTED = Translation(500, "internal-error", "The node failed", (), INTERNAL, _ASK_OPERATOR)


def _storage(slug: str = "storage-problem") -> Translation:
    return Translation(500, slug, "The node's storage cannot be used", (), INTERNAL, _ASK_OPERATOR)


def _keys(slug: str = "key-problem") -> Translation:
    return Translation(500, slug, "The node's keys cannot be used", (), INTERNAL, _ASK_OPERATOR)


TABLE: dict[type[Exception], Translation] = {
    # The broker's. 416: the position is well-formed and lies outside the current extent (RFC 9110, 15.5.17). A reader that lost
    # its place to retention tells it by the status alone, and finds in the members where it may go on.
    broker.BrokerError: UNEXPECTED,
    broker.TopicProblem: Translation(400, "topic-problem", "Something is wrong with the topic"),
    broker.UnknownTopic: Translation(404, "unknown-topic", "There is no such topic", ("topic",)),
    broker.UnknownPartition: Translation(
        404, "unknown-partition", "There is no such partition", ("topic", "partition", "partitions")
    ),
    broker.TopicExists: Translation(409, "topic-exists", "The topic exists", ("topic",)),
    broker.IllegalTopicName: Translation(400, "illegal-topic-name", "The topic name is not legal"),
    broker.InvalidConfig: Translation(400, "invalid-config", "The topic configuration is not valid", ("topic", "config")),
    broker.PartitionsRefused: Translation(
        409, "partitions-refused", "The number of partitions is not possible", ("topic", "config")
    ),
    broker.OffsetOutOfRange: Translation(
        416, "offset-out-of-range", "The offset is out of range", ("topic", "partition", "offset", "log_start", "high_watermark")
    ),
    PositionRefused: Translation(416, "position-refused", "Reading cannot begin there"),
    consumers.ConsumerInvalid: Translation(400, "consumer-invalid", "The consumer is not valid", ("member",)),
    consumers.ConsumerUnknown: Translation(404, "unknown-consumer", "There is no such consumer", ("name",)),
    consumers.ConsumerConflict: Translation(409, "consumer-conflict", "The consumer is another one", ("name",)),
    consumers.ConsumersFull: Translation(409, "consumers-full", "There are too many consumers", ("limit_name", "limit")),
    consumers.ConsumerTakenOver: Translation(409, "consumer-taken-over", "Another connection has the consumer", ("name",)),
    consumers.ConsumerDeleted: Translation(410, "consumer-deleted", "The consumer is gone", ("name",)),
    FilterInvalid: Translation(400, "filter-invalid", "The filter is not valid", ("member",)),
    CursorUnknown: Translation(416, "cursor-unknown", "There is no such place in the log", ("cursor",)),
    CursorAhead: Translation(416, "cursor-ahead", "The cursor is ahead of the log", ("cursor", "next_sequence")),
    broker.RecordTooLarge: Translation(
        413, "record-too-large", "The record is too large", ("size_bytes", "limit_name", "limit_bytes")
    ),
    batch.BatchTooLarge: Translation(
        413, "batch-too-large", "The batch is too large", ("size_bytes", "limit_name", "limit_bytes")
    ),
    broker.BatchRefused: Translation(400, "batch-refused", "The record batch is refused", ("reason",)),
    batch.CorruptBatch: Translation(400, "corrupt-batch", "The record batch is corrupt", ("reason", "position")),
    batch.IllegalBatch: Translation(400, "illegal-batch", "The record batch is refused", ("reason",)),
    batch.TimestampRefused: Translation(400, "timestamp-refused", "A timestamp is refused", ("timestamp_ms", "limit_ms")),
    batch.TooManyRecords: Translation(413, "too-many-records", "A batch has too many records", ("count", "limit_name", "limit")),
    batch.UnsupportedCompression: Translation(400, "unsupported-compression", "The compression is not supported", ("codec",)),
    # Producers that number their batches, and transactions.
    producers.ProducerProblem: Translation(409, "producer-problem", "Something is wrong with the producer"),
    producers.OutOfOrderSequence: Translation(
        409, "out-of-order-sequence", "The batch is out of order", ("producer_id", "found", "expected")
    ),
    producers.InvalidProducerEpoch: Translation(
        409, "invalid-producer-epoch", "A newer run of the producer is in its place", ("producer_id", "found", "current")
    ),
    producers.ProducerFenced: Translation(409, "producer-fenced", "Another producer is in its place", ("transactional_id",)),
    producers.InvalidTransactionState: Translation(409, "invalid-transaction-state", "Not at this point of a transaction"),
    producers.NotInTransaction: Translation(409, "not-in-transaction", "It was not added to the transaction", ("what",)),
    producers.InvalidProducerIdMapping: Translation(
        409, "invalid-producer-id-mapping", "The producer id is another's", ("transactional_id",)
    ),
    producers.InvalidTransactionTimeout: Translation(
        400, "invalid-transaction-timeout", "The timeout is not possible", ("timeout_ms", "limit_ms")
    ),
    producers.TransactionalIdInvalid: Translation(400, "transactional-id-invalid", "The transactional id is not valid"),
    producers.TransactionalIdUnknown: Translation(
        404, "unknown-transactional-id", "There is no such transactional id", ("transactional_id",)
    ),
    # Groups of Kafka clients.
    groups.GroupProblem: Translation(409, "group-problem", "Something is wrong with the group"),
    groups.GroupIdInvalid: Translation(400, "group-id-invalid", "The group id is not valid"),
    groups.GroupUnknown: Translation(404, "unknown-group", "There is no such group", ("group",)),
    groups.GroupNotEmpty: Translation(409, "group-not-empty", "The group has members", ("group",)),
    groups.GroupFull: Translation(409, "group-full", "The group is full", ("limit_name", "limit")),
    groups.MemberUnknown: Translation(404, "unknown-member", "There is no such member"),
    groups.MemberIdRequired: Translation(409, "member-id-required", "A member id is needed", ("member_id",)),
    groups.InstanceFenced: Translation(409, "instance-fenced", "Another member has taken its place"),
    groups.InstanceUnreleased: Translation(409, "instance-unreleased", "Another member is in its place"),
    groups.GenerationIllegal: Translation(409, "illegal-generation", "It is another generation", ("generation", "current")),
    groups.MemberEpochFenced: Translation(409, "member-epoch-fenced", "The member is fenced"),
    groups.MemberEpochStale: Translation(409, "member-epoch-stale", "It is an earlier epoch", ("epoch", "current")),
    groups.RebalanceUnderWay: Translation(409, "rebalance-under-way", "The group rebalances"),
    groups.ProtocolInconsistent: Translation(409, "protocol-inconsistent", "The group has another protocol"),
    groups.AssignorUnsupported: Translation(400, "unsupported-assignor", "There is no such assignor"),
    groups.SubscriptionInvalid: Translation(400, "subscription-invalid", "The subscription is not valid"),
    groups.SessionTimeoutInvalid: Translation(400, "session-timeout-invalid", "The session timeout is not valid"),
    groups.OffsetMetadataTooLarge: Translation(413, "offset-metadata-too-large", "The metadata is too large"),
    groups.TopicSubscribed: Translation(409, "topic-subscribed", "The topic is in use by the group"),
    # 503 for all: the same request may succeed later, after an unknown outcome with the same message ids.
    broker.Unavailable: Translation(503, "unavailable", "Not now"),
    broker.Overloaded: Translation(503, "overloaded", "The node is overloaded", ("queue", "limit", "retry_after_ms")),
    broker.IdempotencyProblem: Translation(409, "idempotency-problem", "Something is wrong with the idempotency key"),
    # The IETF draft (idempotency-key-header, 2.7) has 422 for the first; 409 for both keeps to one class for "look at your key".
    broker.IdempotencyKeyReused: Translation(409, "idempotency-key-reused", "The idempotency key was used for another request"),
    broker.IdempotencyKeyInUse: Translation(
        409, "idempotency-key-in-use", "The first request with this idempotency key is under way", ("retry_after_ms",)
    ),
    broker.IdempotentTooLarge: Translation(413, "idempotent-too-large", "Too many records for one idempotency key", ("limit",)),
    broker.IdempotencyKeysFull: Translation(
        503, "idempotency-keys-full", "No more idempotency keys are remembered", ("limit_name", "limit", "retry_after_ms")
    ),
    broker.StateFull: Translation(503, "state-full", "The node keeps no more state", ("limit_name", "limit")),
    # 507: the server cannot store what is needed to complete the request (RFC 4918, 11.5). Retrying helps once space is made.
    broker.DiskFull: Translation(507, "disk-full", "The node's disk is full", ("free_bytes", "needed_bytes")),
    broker.AppendUnknown: Translation(
        503,
        "append-unknown",
        "The outcome of the append is unknown",
        (),
        None,
        f"the records may or may not be stored: read them back, or send them again with the same message ids; {_ASK_OPERATOR}",
    ),
    broker.DiskFailed: Translation(
        503, "disk-failed", "The node's disk failed", (), None, f"nothing was changed: retry; {_ASK_OPERATOR}"
    ),
    broker.Closed: Translation(503, "closed", "The node is stopping", (), GOING_AWAY),
    broker.StorageProblem: _storage(),
    broker.FolderInUse: _storage("folder-in-use"),
    broker.FormatUnsupported: _storage("format-unsupported"),
    broker.StorageDamaged: _storage("storage-damaged"),
    broker.KeysMismatch: _storage("keys-mismatch"),
    # Security's.
    security.SecurityError: UNEXPECTED,
    security.KeyProblem: _keys(),
    security.KeyMissing: _keys("key-missing"),
    security.KeyWrong: _keys("key-wrong"),
    security.KeyFilePermissions: _keys("key-file-permissions"),
    security.KeyFileExists: _keys("key-file-exists"),
    security.KeyFileBusy: _keys("key-file-busy"),
    security.KeyFormatUnsupported: _keys("key-format-unsupported"),
    security.KeyStoreExists: _keys("key-store-exists"),
    security.KeyFileDamaged: _keys("key-file-damaged"),
    security.KeyShredded: _keys("key-shredded"),
    security.KeyStoreDamaged: _keys("key-store-damaged"),
    security.NonceExhausted: _keys("nonce-exhausted"),
    security.CertificateProblem: _keys("certificate-problem"),
    security.TamperedData: Translation(500, "tampered-data", "Stored data does not authenticate", (), INTERNAL, _ASK_OPERATOR),
    security.IdentityProblem: Translation(401, "unauthenticated", "Who is asking is not proved", (), UNAUTHENTICATED),
    security.CredentialsMissing: Translation(401, "credentials-missing", "Credentials are missing", (), UNAUTHENTICATED),
    security.TokenExpired: Translation(401, "token-expired", "The token has expired", ("expired_at_ms",), UNAUTHENTICATED),
    security.TokenRevoked: Translation(401, "token-revoked", "The token was revoked", (), REVOKED),
    security.CertificateRefused: Translation(
        401, "certificate-refused", "The client certificate is refused", (), UNAUTHENTICATED
    ),
    security.LoginsThrottled: Translation(429, "logins-throttled", "Too many log-ins have failed", ("retry_after_ms",), TOO_MUCH),
    security.AccessDenied: Translation(403, "access-denied", "Not allowed", ("principal", "action", "resource")),
    security.QuotaExceeded: Translation(429, "quota-exceeded", "Too much", ("quota", "retry_after_ms")),
    TokenUnknown: Translation(404, "unknown-token", "There is no such token", ("token_id",)),
    StoreDamaged: UNEXPECTED,
    StoreFull: UNEXPECTED,
    StoreBusy: UNEXPECTED,
    UserUnknown: Translation(404, "unknown-user", "There is no such user", ("name",)),
    UserExists: Translation(409, "user-exists", "There is such a user already", ("name",)),
    UserStoreFull: Translation(409, "user-store-full", "There are too many users", ("limit_name", "limit")),
    UserStoreBusy: Translation(503, "user-store-busy", "The users are being changed", (), None, "try again in a moment"),
    UserStoreDamaged: Translation(503, "user-store-damaged", "Users cannot be checked", (), INTERNAL, _ASK_OPERATOR),
    TokenStoreFull: Translation(409, "token-store-full", "There are too many tokens", ("limit_name", "limit")),
    TokenStoreBusy: Translation(503, "token-store-busy", "The tokens are being changed", (), None, "try again in a moment"),
    TokenStoreDamaged: Translation(503, "token-store-damaged", "Tokens cannot be checked", (), INTERNAL, _ASK_OPERATOR),
    PolicyInvalid: UNEXPECTED,
    # The gateway's own.
    GatewayError: UNEXPECTED,
    RequestInvalid: Translation(400, "request-invalid", "The request is not valid"),
    BodyMalformed: Translation(400, "body-malformed", "The body is malformed", ("where",)),
    ParameterInvalid: Translation(400, "parameter-invalid", "A parameter is not valid", ("name",)),
    RecordInvalid: Translation(400, "record-invalid", "A record is not valid", ("index",)),
    EventInvalid: Translation(400, "event-invalid", "A CloudEvent is not valid", ("attribute", "index")),
    BodyTooLarge: Translation(413, "body-too-large", "The request is too large", ("limit_name", "limit"), TOO_BIG),
    MediaTypeUnsupported: Translation(415, "media-type-unsupported", "The content type is not understood", ("supported",)),
    ContentEncodingUnsupported: Translation(
        415, "content-encoding-unsupported", "The content encoding is not understood", ("supported",)
    ),
    RouteUnknown: Translation(404, "route-unknown", "There is nothing here"),
    MethodNotAllowed: Translation(405, "method-not-allowed", "The method is not possible here", ("allowed",)),
    OriginRefused: Translation(403, "origin-refused", "Pages of this origin may not call", ("origin",)),
    PartitionNotThere: Translation(
        409, "partition-not-there", "The topic has no such partition", ("topic", "partition", "partitions")
    ),
    NoRecord: Translation(404, "no-record", "There is no record here", ("topic",)),
    NoDeadLetter: Translation(404, "no-dead-letter", "There is no such dead letter", ("topic", "partition", "offset")),
    NotDeadLetters: Translation(409, "not-dead-letters", "It is no dead-letter topic", ("topic",)),
    Busy: Translation(503, "busy", "The node is busy", ("limit_name", "limit", "retry_after_ms")),
    Draining: Translation(503, "draining", "The node is stopping", (), GOING_AWAY),
    ClientGone: Translation(499, "client-gone", "The client went away"),
}

# Why a credential failed is for the log: told to the caller, it would help whoever tries them out.
TABLE[security.CredentialsInvalid] = Translation(
    401,
    "credentials-invalid",
    "The credentials are not valid",
    (),
    UNAUTHENTICATED,
    "the credentials are not valid: check them, or ask for new ones",
)


# The same in Kafka's words, which are numbers: the class's own, or that of the nearest class above it. Those that Kafka's clients
# retry are so here: the same request may succeed later.
KAFKA: dict[type[Exception], ErrorCode] = {
    Exception: ErrorCode.UNKNOWN_SERVER_ERROR,
    broker.UnknownTopic: ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
    broker.UnknownPartition: ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
    broker.TopicExists: ErrorCode.TOPIC_ALREADY_EXISTS,
    broker.IllegalTopicName: ErrorCode.INVALID_TOPIC_EXCEPTION,
    broker.InvalidConfig: ErrorCode.INVALID_CONFIG,
    broker.PartitionsRefused: ErrorCode.INVALID_PARTITIONS,
    broker.OffsetOutOfRange: ErrorCode.OFFSET_OUT_OF_RANGE,
    broker.RecordTooLarge: ErrorCode.MESSAGE_TOO_LARGE,
    batch.BatchTooLarge: ErrorCode.MESSAGE_TOO_LARGE,
    broker.BatchRefused: ErrorCode.INVALID_RECORD,
    batch.CorruptBatch: ErrorCode.CORRUPT_MESSAGE,
    batch.IllegalBatch: ErrorCode.INVALID_RECORD,
    batch.TimestampRefused: ErrorCode.INVALID_TIMESTAMP,
    batch.TooManyRecords: ErrorCode.MESSAGE_TOO_LARGE,
    batch.UnsupportedCompression: ErrorCode.UNSUPPORTED_COMPRESSION_TYPE,
    # Producers send a batch again that not enough replicas took; a timeout says that the outcome is not known.
    broker.Unavailable: ErrorCode.NOT_ENOUGH_REPLICAS,
    broker.AppendUnknown: ErrorCode.REQUEST_TIMED_OUT,
    broker.DiskFailed: ErrorCode.KAFKA_STORAGE_ERROR,
    broker.StorageProblem: ErrorCode.KAFKA_STORAGE_ERROR,
    security.KeyProblem: ErrorCode.KAFKA_STORAGE_ERROR,
    security.IdentityProblem: ErrorCode.SASL_AUTHENTICATION_FAILED,
    security.LoginsThrottled: ErrorCode.REQUEST_TIMED_OUT,
    security.AccessDenied: ErrorCode.TOPIC_AUTHORIZATION_FAILED,
    security.QuotaExceeded: ErrorCode.THROTTLING_QUOTA_EXCEEDED,
    UserUnknown: ErrorCode.RESOURCE_NOT_FOUND,
    UserStoreFull: ErrorCode.POLICY_VIOLATION,
    UserStoreBusy: ErrorCode.REQUEST_TIMED_OUT,
    RequestInvalid: ErrorCode.INVALID_REQUEST,
    RecordInvalid: ErrorCode.INVALID_RECORD,
    BodyTooLarge: ErrorCode.MESSAGE_TOO_LARGE,
    Busy: ErrorCode.NOT_ENOUGH_REPLICAS,
    Draining: ErrorCode.BROKER_NOT_AVAILABLE,
    ClientGone: ErrorCode.NETWORK_EXCEPTION,
    producers.OutOfOrderSequence: ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER,
    producers.InvalidProducerEpoch: ErrorCode.INVALID_PRODUCER_EPOCH,
    producers.InvalidTransactionState: ErrorCode.INVALID_TXN_STATE,
    producers.InvalidProducerIdMapping: ErrorCode.INVALID_PRODUCER_ID_MAPPING,
    producers.InvalidTransactionTimeout: ErrorCode.INVALID_TRANSACTION_TIMEOUT,
    producers.ProducerFenced: ErrorCode.PRODUCER_FENCED,
    producers.TransactionalIdInvalid: ErrorCode.INVALID_REQUEST,
    producers.TransactionalIdUnknown: ErrorCode.TRANSACTIONAL_ID_NOT_FOUND,
    groups.GroupIdInvalid: ErrorCode.INVALID_GROUP_ID,
    groups.GroupUnknown: ErrorCode.GROUP_ID_NOT_FOUND,
    groups.GroupNotEmpty: ErrorCode.NON_EMPTY_GROUP,
    groups.GroupFull: ErrorCode.GROUP_MAX_SIZE_REACHED,
    groups.MemberUnknown: ErrorCode.UNKNOWN_MEMBER_ID,
    groups.MemberIdRequired: ErrorCode.MEMBER_ID_REQUIRED,
    groups.InstanceFenced: ErrorCode.FENCED_INSTANCE_ID,
    groups.InstanceUnreleased: ErrorCode.UNRELEASED_INSTANCE_ID,
    groups.GenerationIllegal: ErrorCode.ILLEGAL_GENERATION,
    groups.MemberEpochFenced: ErrorCode.FENCED_MEMBER_EPOCH,
    groups.MemberEpochStale: ErrorCode.STALE_MEMBER_EPOCH,
    groups.RebalanceUnderWay: ErrorCode.REBALANCE_IN_PROGRESS,
    groups.ProtocolInconsistent: ErrorCode.INCONSISTENT_GROUP_PROTOCOL,
    groups.AssignorUnsupported: ErrorCode.UNSUPPORTED_ASSIGNOR,
    groups.SubscriptionInvalid: ErrorCode.INVALID_REGULAR_EXPRESSION,
    groups.SessionTimeoutInvalid: ErrorCode.INVALID_SESSION_TIMEOUT,
    groups.OffsetMetadataTooLarge: ErrorCode.OFFSET_METADATA_TOO_LARGE,
    groups.TopicSubscribed: ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC,
}
KAFKA_DENIED: dict[str, ErrorCode] = {
    Action.GROUP: ErrorCode.GROUP_AUTHORIZATION_FAILED,
    Action.TRANSACTION: ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    **dict.fromkeys(NODE_ACTIONS, ErrorCode.CLUSTER_AUTHORIZATION_FAILED),
}


def kafka_error(error: BaseException, instance: str = "") -> tuple[ErrorCode, str]:
    """Kafka's code, and what its `error_message` says. Logs what the caller is not told."""
    row = translate(error)
    if row.status >= 500 and row.detail is not None:
        logger.error("request failed: %s", row.slug, exc_info=error, extra={"request_id": instance})
    if isinstance(error, security.AccessDenied):
        code = KAFKA_DENIED.get(error.action, ErrorCode.TOPIC_AUTHORIZATION_FAILED)
    else:
        code = next((KAFKA[kind] for kind in type(error).__mro__ if kind in KAFKA), ErrorCode.UNKNOWN_SERVER_ERROR)
    return code, str(error) if row.detail is None else row.detail


def bare(error: Failure) -> Failure:
    """The error without the frames that it was raised through, for whoever keeps it: they hold the request, and all of it."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def translate(error: BaseException) -> Translation:
    """The row of the error's class, or of the nearest class above it; UNEXPECTED where there is none."""
    for kind in type(error).__mro__:
        if (found := TABLE.get(kind)) is not None:
            return found
    return UNEXPECTED


def problem(error: BaseException, instance: str) -> dict[str, Any]:
    """The problem document (RFC 9457); `instance` is the request's id. Logs what the caller is not told."""
    row = translate(error)
    if row.status >= 500 and row.detail is not None:
        logger.error("request failed: %s", row.slug, exc_info=error, extra={"request_id": instance})
    document: dict[str, Any] = {
        "type": f"/problems/{row.slug}",
        "title": row.title,
        "status": row.status,
        "detail": str(error) if row.detail is None else row.detail,
        "instance": instance,
    }
    for name in row.facts:
        if (fact := getattr(error, name)) is not None:
            document[name] = fact
    return document


def answer_headers(error: BaseException) -> list[tuple[bytes, bytes]]:
    """The HTTP headers that belong to a refusal: WWW-Authenticate, Allow, Retry-After (RFC 9110, 11.6.1, 10.2.1, 10.2.3)."""
    if isinstance(error, security.CredentialsMissing):
        return [(b"www-authenticate", b'Bearer realm="sprawl"')]  # RFC 6750, 3.1: no error code where nothing was offered
    if isinstance(error, security.IdentityProblem):
        return [(b"www-authenticate", b'Bearer realm="sprawl", error="invalid_token"')]
    if isinstance(error, MethodNotAllowed):
        return [(b"allow", ", ".join(error.allowed).encode("ascii"))]
    if isinstance(error, ContentEncodingUnsupported):  # RFC 9110, 15.5.16: tells it from an unknown media type
        return [(b"accept-encoding", ", ".join(error.supported).encode("ascii"))]
    if isinstance(error, Draining | broker.Closed):
        return [(b"retry-after", b"1")]
    wait_ms = getattr(error, "retry_after_ms", None)
    return [] if wait_ms is None else [(b"retry-after", b"%d" % max(1, -(-wait_ms // 1_000)))]
