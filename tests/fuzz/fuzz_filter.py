"""Fuzz target: filters, against a second matcher that is written as MQTT 5.0, 4.7 reads, level by level.

The input is text: address, key prefix, header lines, and a record (topic, key, header), each on a line of its own.
"""

from __future__ import annotations

from broker.delivery.filter import ADDRESS_BYTES_MAX, HEADERS_MAX, LEVELS_MAX, Filter, FilterInvalid
from broker.record import Record
from broker.topics.addresses import Address, legal_topic_name
from gateway.endpoints.filtered import filter_of
from gateway.endpoints.query import Query
from gateway.errors import ParameterInvalid
from tests.fuzz.refusals import check_refusal

CORPUS = [
    b"orders/eu/+\n\n\norders\neu/7\n",
    b"orders/#\neu\ntype:paid\norders\neu/7\ntype:paid",
    b"+/status\n\n\norders\nstatus\n",
    b"#\n\n\na\n\n",
    b"a/+/+/#\nx\na:b\na\nx/y/z/1\na:b",
    b"orders/$key/AP8\n\n\norders\n\x00\xff\n",
    b"orders/$key/+\n\n\norders\n$key/AP8\n",
    b"orders/++\n\n\norders\n\n",
    b"a/" + b"/" * (LEVELS_MAX + 1),
    b"a/" + b"x" * ADDRESS_BYTES_MAX,
    b"address=orders%2F%2B&key_prefix=eu&headers=type:paid%0Aa:b\n\n\norders\neu\n",
]


def one_input(data: bytes) -> None:
    _query(data)
    address, key_prefix, header, topic, key, carried = [*data.split(b"\n"), *[b""] * 6][:6]
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, _, value in [header.partition(b":")] if name]
    try:
        made = Filter.parse(address.decode("utf-8", "replace"), key_prefix=key_prefix, headers=headers)
    except FilterInvalid as error:
        check_refusal(error)
        return
    assert len(made.headers) <= HEADERS_MAX
    assert Filter(made.address, made.key_prefix, made.headers) == made
    name, _, value = carried.partition(b":")
    pairs = ((name.decode("latin-1"), value.decode("latin-1").encode()),) if name else ()
    for spoken in (key, None):
        _compare(made, topic.decode("latin-1"), Record(0, 0, spoken, b"", pairs))


def _compare(made: Filter, topic: str, record: Record) -> None:
    if not legal_topic_name(topic):
        return
    wanted = (
        _matches(made.address.split("/"), Address(topic, record.key).text().split("/"), made)
        and (made.key_prefix is None or (record.key is not None and record.key.startswith(made.key_prefix)))
        and all(pair in record.headers for pair in made.headers)
    )
    assert made.matches(topic, record) == wanted, f"{made} of {topic!r} {record!r}"
    assert made.topics(topic) or not wanted
    if made.exact is not None:
        assert (topic, record.key) == made.exact or not wanted
    if made.open and made.topics(topic):
        assert wanted


def _matches(levels: list[str], path: list[str], made: Filter) -> bool:
    if "+" not in levels and "#" not in levels:
        return "/".join(path) == made.address
    for number, level in enumerate(levels):
        if level == "#":
            return True
        if number >= len(path) or level not in ("+", path[number]):
            return False
        if levels[number + 1 :] == ["#"] and number + 1 == len(path):
            return True
    return len(levels) == len(path)


def _query(data: bytes) -> None:
    try:
        filter_of(Query(data.partition(b"\n")[0]))
    except (ParameterInvalid, FilterInvalid) as error:
        check_refusal(error)
