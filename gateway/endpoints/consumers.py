"""/v1/consumers: durable consumers as their owners and administrators see them. Records come by WebSocket."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

from broker import errors as broker
from broker.delivery import consumer_errors as consumers
from broker.delivery.consumers import ConsumerInfo
from broker.delivery.position import CursorAhead, PositionRefused
from gateway.endpoints.documents import answer_document, answer_nothing, document_body, read_document
from gateway.endpoints.exchange import Exchange
from gateway.endpoints.operations import Answer, Operation, Parameter, Schema
from gateway.endpoints.parameters import FLAG, PRINTABLE
from gateway.endpoints.query import Query
from gateway.endpoints.read import TOPIC_START
from gateway.errors import BodyMalformed, BodyTooLarge, MediaTypeUnsupported, ParameterInvalid
from gateway.pipeline import Pipeline
from security.principal import NAME_CHARS_MAX

LISTED_MAX = 1_000

NAME = Parameter(
    name="name", place="path", schema={"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"}, about="the consumer's name"
)
PRINCIPAL: Schema = {**PRINTABLE, "maxLength": NAME_CHARS_MAX}
OWNER = Parameter(
    name="owner",
    schema=PRINCIPAL,
    about="the principal whose consumer it is, for administrators; oneself where it is not given",
)
JSON = "application/json"


class FilterAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What it reads; a prefix that is no UTF-8 is `key_prefix64`."""

    address: str
    key_prefix: str | UnsetType = UNSET
    key_prefix64: bytes | UnsetType = UNSET
    headers: dict[str, str] = {}


class TermsAnswer(msgspec.Struct, frozen=True):
    """What holds for it: what it asked for, else the node's defaults."""

    ack_timeout_ms: int
    deliveries_max: int
    retry_backoff_ms: int
    retry_backoff_max_ms: int
    in_flight_max: int
    dead_letter_topic: str | None


class ConsumerAnswer(msgspec.Struct, frozen=True):
    """All before `position` is settled; all before `next` is settled, or among the `pending` ones."""

    name: str
    owner: str
    filter: FilterAnswer
    options: TermsAnswer
    created_at_ms: int
    changed_at_ms: int
    position: str
    next: str
    pending: int
    in_flight: int
    connected: bool
    lag_records: int | None


class ConsumerList(msgspec.Struct, frozen=True):
    consumers: list[ConsumerAnswer]


class Gift(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`to` is the name of a principal, as `sprawl tokens list` and /v1/whoami tell it."""

    to: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX, extra_json_schema={"format": "printable"})]


class ConsumerRoutes:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def operations(self) -> list[Operation]:
        one = "/v1/consumers/{name}"
        found = {200: Answer("The consumer", {JSON: ConsumerAnswer})}
        unknown = (consumers.ConsumerUnknown, consumers.ConsumerDeleted)
        return [
            Operation(
                "GET",
                "/v1/consumers",
                self.list,
                "list_consumers",
                "One's own durable consumers, or everybody's",
                {200: Answer(f"By owner and name, at most {LISTED_MAX}", {JSON: ConsumerList})},
                tag="consumers",
                parameters=(Parameter(name="all", schema=FLAG, about="everybody's, for administrators"),),
            ),
            Operation(
                "GET",
                one,
                self.show,
                "show_consumer",
                "A consumer: what it reads, where it stands, what is open",
                found,
                tag="consumers",
                parameters=(NAME, OWNER),
                refusals=unknown,
            ),
            Operation(
                "DELETE",
                one,
                self.delete,
                "delete_consumer",
                "Forget a consumer and its position; its records stay in the log",
                {204: Answer("It is gone")},
                tag="consumers",
                parameters=(NAME, OWNER),
                refusals=unknown,
            ),
            Operation(
                "POST",
                one + "/seek",
                self.seek,
                "seek_consumer",
                "Send a consumer to another place in the log; what was open is forgotten",
                found,
                tag="consumers",
                parameters=(NAME, OWNER, TOPIC_START),
                refusals=(
                    *unknown,
                    broker.UnknownTopic,
                    broker.UnknownPartition,
                    broker.OffsetOutOfRange,
                    CursorAhead,
                    PositionRefused,
                ),
            ),
            Operation(
                "POST",
                one + "/give",
                self.give,
                "give_consumer",
                "Give a consumer to another principal, with its position: to that of a new token, for instance",
                {204: Answer("It is the other's")},
                tag="consumers",
                parameters=(NAME, OWNER),
                body=document_body(Gift, {"properties": {"to": PRINCIPAL}}),
                refusals=(
                    *unknown,
                    consumers.ConsumerConflict,
                    consumers.ConsumersFull,
                    BodyMalformed,
                    BodyTooLarge,
                    MediaTypeUnsupported,
                ),
            ),
        ]

    async def list(self, exchange: Exchange) -> None:
        query = exchange.query()
        everybody = query.flag("all")
        query.finish()
        found = await self._pipeline.list_consumers(exchange.session, everybody=everybody, consumers_max=LISTED_MAX)
        await answer_document(exchange, 200, ConsumerList([_answer(info) for info in found]))

    async def show(self, exchange: Exchange, name: str) -> None:
        query = exchange.query()
        owner = _owner(query)
        query.finish()
        await answer_document(exchange, 200, _answer(await self._pipeline.describe_consumer(exchange.session, name, owner)))

    async def delete(self, exchange: Exchange, name: str) -> None:
        query = exchange.query()
        owner = _owner(query)
        query.finish()
        await self._pipeline.delete_consumer(exchange.session, name, owner)
        await answer_nothing(exchange)

    async def seek(self, exchange: Exchange, name: str) -> None:
        query = exchange.query()
        owner = _owner(query)
        position = query.position("earliest")
        query.finish()
        info = await self._pipeline.seek_consumer(exchange.session, name, position, owner)
        await answer_document(exchange, 200, _answer(info))

    async def give(self, exchange: Exchange, name: str) -> None:
        query = exchange.query()
        owner = _owner(query)
        query.finish()
        gift = await read_document(exchange, Gift)
        if not _is_name(gift.to):
            raise BodyMalformed(f"a principal's name has 1 to {NAME_CHARS_MAX} printable characters", "$.to")
        await self._pipeline.give_consumer(exchange.session, name, gift.to, owner)
        await answer_nothing(exchange)


def _owner(query: Query) -> str | None:
    owner = query.text("owner")
    if owner is not None and not _is_name(owner):
        raise ParameterInvalid("owner", f"a principal's name has 1 to {NAME_CHARS_MAX} printable characters")
    return owner


def _is_name(text: str) -> bool:
    return 0 < len(text) <= NAME_CHARS_MAX and text.isprintable()


def _answer(info: ConsumerInfo) -> ConsumerAnswer:
    terms = info.terms
    return ConsumerAnswer(
        info.name,
        info.owner,
        _filter(info),
        TermsAnswer(
            terms.ack_timeout_ms,
            terms.deliveries_max,
            terms.retry_backoff_ms,
            terms.retry_backoff_max_ms,
            terms.in_flight_max,
            info.dead_letter_topic,
        ),
        info.created_at_ms,
        info.changed_at_ms,
        str(info.position),
        str(info.next),
        info.pending,
        info.in_flight,
        info.connected,
        info.lag_records,
    )


def _filter(info: ConsumerInfo) -> FilterAnswer:
    filter = info.filter
    text: str | UnsetType = UNSET
    raw: bytes | UnsetType = UNSET
    if filter.key_prefix is not None:
        try:
            text = filter.key_prefix.decode()
        except UnicodeDecodeError:
            raw = filter.key_prefix
    return FilterAnswer(filter.address, text, raw, {name: value.decode() for name, value in filter.headers})
