"""What a dead letter says, and what it carries."""

from __future__ import annotations

import pytest

from broker.batch import keys, walk
from broker.delivery.dead_letter import (
    Death,
    Letter,
    Reason,
    appends_of,
    configs_of_new,
    dead_letter_topic,
    draft_of,
    is_whole,
    read_letter,
)
from broker.engine.base import Topic
from broker.record import Record

DEATH = Death("orders", 3, Reason.REJECTED, "no such customer", 2, "billing", "token:a")
RECORD = Record(17, 1_000, b"eu/1", b"v", (("sprawl-message-id", b"x" * 36), ("h", b"1"), ("h", None), ("H", b"")))


def topic(name: str = "orders.dlq", partitions: int = 1, **configs: str) -> Topic:
    return Topic(bytes(16), name, partitions, configs, 0)


def letter_of(record: Record, death: Death = DEATH) -> Record:
    (append,) = appends_of(topic(), [(death.partition, draft_of(record, death, 2_000))])
    (found,) = walk(append.batch)
    return found


def test_it_is_the_record_and_says_what_happened() -> None:
    found = letter_of(RECORD)
    assert (found.key, found.value, found.timestamp_ms, found.message_id) == (b"eu/1", b"v", 2_000, "x" * 36)
    assert found.headers[: len(RECORD.headers)] == RECORD.headers
    assert is_whole(found)
    assert read_letter(found) == Letter("rejected", "no such customer", "orders", 3, 17, 1_000, 2, "billing", "token:a")


def test_what_was_said_of_an_earlier_stay_is_not_carried_on() -> None:
    earlier = Record(
        5, 1_000, None, None,
        (("sprawl-attempts", b"4"), ("sprawl-replayed-from", b"o.dlq/0/1"), ("sprawl-expires-at", b"9"), ("sprawl-dlq-x", b"y")),
    )  # fmt: skip
    found = letter_of(earlier)
    names = [name for name, _ in found.headers]
    assert not {"sprawl-attempts", "sprawl-replayed-from", "sprawl-expires-at", "sprawl-dlq-x"} & set(names)
    letter = read_letter(found)
    assert letter is not None
    assert letter.attempts == 6  # those before the replay are counted on


@pytest.mark.parametrize("value", [b"", b"-1", b"1e3", b"9" * 20, "\u0661".encode(), b"\xff", None])
def test_numbers_that_are_none_read_as_nothing(value: bytes | None) -> None:
    headers = (("sprawl-dlq-topic", b"orders"), ("sprawl-dlq-offset", value), ("sprawl-dlq-attempts", value))
    letter = read_letter(Record(0, 0, None, None, headers))
    assert letter is not None
    assert (letter.offset, letter.attempts, letter.reason) == (0, 0, "")


def test_other_records_are_no_letters() -> None:
    assert read_letter(RECORD) is None
    assert read_letter(Record(0, 0, None, None, (("sprawl-dlq-reason", b"rejected"),))) is None


def test_the_first_of_two_headers_counts() -> None:
    headers = (("sprawl-dlq-topic", b"orders"), ("sprawl-dlq-topic", b"other"))
    letter = read_letter(Record(0, 0, None, None, headers))
    assert letter is not None
    assert letter.topic == "orders"


def test_where_letters_go() -> None:
    assert dead_letter_topic(topic("orders")) == "orders.dlq"
    assert dead_letter_topic(topic("orders", **{"dead.letter.topic": "graveyard"})) == "graveyard"
    assert dead_letter_topic(topic("orders", **{"dead.letter.topic": ""})) == "orders.dlq"
    assert dead_letter_topic(topic("orders", **{"dead.letter.topic": "graveyard"}), "mine") == "mine"
    assert dead_letter_topic(topic("t" * 249)) == "t" * 245 + ".dlq"


def test_a_new_topic_has_room_for_the_headers() -> None:
    assert configs_of_new(topic("orders", **{"max.message.bytes": "1000"})) == {"max.message.bytes": "5096"}
    assert configs_of_new(topic("orders", **{"max.message.bytes": str(16 << 20)})) == {"max.message.bytes": str(16 << 20)}


def test_letters_keep_their_order_within_a_partition() -> None:
    letters = [(number % 3, draft_of(RECORD, DEATH, number)) for number in range(9)]
    appends = appends_of(topic(partitions=2), letters)
    assert [(append.partition, [record.timestamp_ms for record in walk(append.batch)]) for append in appends] == [
        (0, [0, 2, 3, 5, 6, 8]),  # partitions 0 and 2
        (1, [1, 4, 7]),
    ]
    assert [set(append.keys or ()) for append in appends] == [{b"eu/1"}, {b"eu/1"}]
    assert set(keys(appends[0].batch)) == {b"eu/1"}
