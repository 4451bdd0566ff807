"""Every rule of the judge, broken once."""

import pytest

from broker.batch import build
from broker.engine.base import Append, Appended, Damage, PartitionOffsets, Stored, Topic
from tests.simulation.ledger import Broken, Ledger

ORDERS = Topic(b"o" * 16, "orders", 2, {}, 0)
READINGS = Topic(b"r" * 16, "readings", 1, {}, 0)
IDS = {topic.name: topic.topic_id for topic in (ORDERS, READINGS)}


class Court:
    """A ledger with two topics, and short ways to say what happens."""

    def __init__(self):
        self.verdicts = []
        self.ledger = Ledger(self.verdicts.append)
        for topic in (ORDERS, READINGS):
            self.ledger.created(self.ledger.creating(topic.name, topic.partitions), topic)

    def publish(self, *values, topic=ORDERS, partition=0):
        """One call with a batch a value; returns the call and the appends."""
        appends = [Append(topic.name, partition, build([(5, b"k", value, ()), (7, None, value, ())])) for value in values]
        return self.ledger.publishing(IDS, appends, [((b"k", None), (5, 7))] * len(appends)), appends

    def acknowledge(self, call, base_offset, sequence):
        answers = [
            Appended(batch.topic, batch.partition, base_offset + 2 * n, 2, sequence + n, 0)
            for n, batch in enumerate(call.batches)
        ]
        self.ledger.acknowledge(call, answers)

    def saw(self, append, base_offset, sequence, topic=ORDERS, **changes):
        return self.ledger.saw(topic, stored(append.batch, base_offset, sequence, **changes))

    def check(self, found, high_watermark, damage=(), partition=0):
        return self.ledger.check_partition(ORDERS, PartitionOffsets(partition, 0, high_watermark), found, damage)


def stored(batch, base_offset, sequence, partition=0, next_offset=None, max_timestamp_ms=7):
    placed = base_offset.to_bytes(8, "big") + batch[8:]
    return Stored(
        partition, base_offset, base_offset + 2 if next_offset is None else next_offset, sequence, max_timestamp_ms, placed
    )


@pytest.fixture
def court():
    return Court()


def test_what_was_acknowledged_and_is_there_passes(court):
    call, appends = court.publish(b"1", b"2")
    court.acknowledge(call, 0, 10)
    found = [court.saw(appends[0], 0, 10), court.saw(appends[1], 2, 11)]
    assert court.check(found, 4) == []
    court.ledger.settle(set())
    assert court.verdicts == []
    assert court.ledger.acknowledged == 2
    assert court.ledger.seen == 2


def test_an_acknowledged_batch_that_is_gone(court):
    court.acknowledge(court.publish(b"1")[0], 0, 10)
    with pytest.raises(Broken, match="lost: orders/0 at 0"):
        court.check([], 0)
    assert len(court.verdicts) == 1


def test_a_batch_seen_once_and_gone_even_if_never_acknowledged(court):
    _, [append] = court.publish(b"1")
    court.saw(append, 0, 10)
    with pytest.raises(Broken, match="lost"):
        court.check([], 0)


def test_reported_damage_excuses_exactly_its_range(court):
    call, [_, second] = court.publish(b"1", b"2")
    court.acknowledge(call, 0, 10)
    found = [court.saw(second, 2, 11)]
    missing = court.check(found, 4, [Damage("orders", 0, 0, 2, "flipped")])
    assert [batch.base_offset for batch in missing] == [0]
    for damage in (Damage("orders", 0, 0, 1, ""), Damage("orders", 1, 0, 2, ""), Damage("readings", 0, 0, 2, "")):
        with pytest.raises(Broken, match="a hole from"):
            court.check(found, 4, [damage])


def test_an_altered_batch(court):
    call, [append] = court.publish(b"1")
    court.acknowledge(call, 0, 10)
    flipped = append.batch[:-1] + bytes([append.batch[-1] ^ 1])
    with pytest.raises(Broken, match="nobody published, or altered"):
        court.ledger.saw(ORDERS, stored(flipped, 0, 10))


def test_a_batch_that_nobody_published(court):
    with pytest.raises(Broken, match="nobody published"):
        court.ledger.saw(ORDERS, stored(build([(5, None, b"x", ())]), 0, 1))


@pytest.mark.parametrize(
    ("offset", "sequence", "changes", "what"),
    [
        (4, 10, {}, "now at 4"),
        (0, 11, {}, "sequence 11"),
        (0, 10, {"partition": 1}, "published elsewhere"),
        (0, 10, {"next_offset": 3}, "next offset 3"),
        (0, 10, {"max_timestamp_ms": 6}, "max timestamp 6"),
        (0, 10, {"topic": READINGS}, "published elsewhere"),
    ],
)
def test_a_batch_in_another_place(court, offset, sequence, changes, what):
    call, [append] = court.publish(b"1")
    court.acknowledge(call, 0, 10)
    with pytest.raises(Broken, match=what):
        court.saw(append, offset, sequence, **changes)


def test_the_offset_inside_the_batch_must_agree(court):
    _, [append] = court.publish(b"1")
    with pytest.raises(Broken, match="base offset inside"):
        court.ledger.saw(ORDERS, Stored(0, 2, 4, 10, 7, append.batch))


def test_two_batches_in_one_place(court):
    court.acknowledge(court.publish(b"1")[0], 0, 10)
    with pytest.raises(Broken, match="two batches in one place"):
        court.acknowledge(court.publish(b"2")[0], 0, 11)
    with pytest.raises(Broken, match="two batches in one place"):
        court.acknowledge(court.publish(b"3")[0], 8, 10)


def test_an_acknowledgement_for_something_else(court):
    with pytest.raises(Broken, match="is not for"):
        court.ledger.acknowledge(court.publish(b"1")[0], [Appended("orders", 1, 0, 2, 10, 0)])


def test_a_refused_batch_must_never_be_seen(court):
    call, [append] = court.publish(b"1")
    court.ledger.refuse(call)
    with pytest.raises(Broken, match="refused"):
        court.saw(append, 0, 10)


def test_an_unknown_outcome_is_decided_by_the_next_start_for_good(court):
    there, [append] = court.publish(b"1")
    absent, [ghost] = court.publish(b"2")
    court.ledger.unknown(there)
    court.ledger.unknown(absent)
    found = [court.saw(append, 0, 10)]
    court.check(found, 2)
    court.ledger.settle(set())
    assert (there.outcome, absent.outcome) == ("acknowledged", "absent")
    with pytest.raises(Broken, match="absent"):
        court.saw(ghost, 2, 11)


def test_half_of_an_append(court):
    call, [first, _] = court.publish(b"1", b"2")
    court.ledger.unknown(call)
    court.saw(first, 0, 10)
    with pytest.raises(Broken, match="half of an append"):
        court.ledger.settle(set())


def test_half_of_an_append_is_excused_where_its_partition_is_damaged_or_its_topic_deleted(court):
    call, [first, _] = court.publish(b"1", b"2")
    court.saw(first, 0, 10)
    court.ledger.settle({(ORDERS.topic_id, 0)})
    assert call.outcome == "acknowledged"
    ids, batches = {**IDS, "gone": b"g" * 16}, [build([(5, None, value, ())]) for value in (b"3", b"4")]
    court.ledger.creating("gone", 1)
    appends = [Append("orders", 0, batches[0]), Append("gone", 0, batches[1])]
    call = court.ledger.publishing(ids, appends, [((None,), (5,))] * 2)
    court.ledger.deleted("gone")
    court.ledger.saw(ORDERS, stored(batches[0], 2, 11, next_offset=3, max_timestamp_ms=5))
    court.ledger.settle(set())
    assert call.outcome == "acknowledged"


def test_holes_overlaps_and_a_wrong_end(court):
    _, appends = court.publish(b"1", b"2", b"3")
    places = [(0, 10), (2, 11), (6, 12)]
    first, second, third = (court.saw(append, *place) for append, place in zip(appends, places, strict=True))
    with pytest.raises(Broken, match="a hole from 4 to 6"):
        court.check([first, second, third], 8)
    with pytest.raises(Broken, match="overlap or go back at 4: orders/0 at 2"):
        court.check([first, second, second], 4)
    with pytest.raises(Broken, match="ends at 4, its high watermark is 6"):
        court.check([first, second], 6)
    with pytest.raises(Broken, match="ends at 4, its high watermark is 2"):
        court.check([first, second], 2)


def test_sequences_that_do_not_grow_with_the_offsets(court):
    _, appends = court.publish(b"1", b"2")
    found = [court.saw(appends[0], 0, 11), court.saw(appends[1], 2, 10)]
    with pytest.raises(Broken, match="do not grow"):
        court.check(found, 4)


def test_a_reader_that_was_passed_by(court):
    _, appends = court.publish(b"1", b"2", b"3")
    for number, append in enumerate(appends):
        court.saw(append, 2 * number, 10 + number)
    follower = court.ledger.follow(ORDERS, 10)
    follower.seen |= {10, 12}
    follower.to_sequence = 13
    with pytest.raises(Broken, match="never got orders/0 at 2"):
        court.ledger.check_followers([])


def test_a_reader_of_another_topic_is_not_passed_by(court):
    court.saw(court.publish(b"1")[1][0], 0, 10)
    court.ledger.follow(READINGS, 10).to_sequence = 11
    court.ledger.check_followers([])


def test_topics(court):
    court.ledger.check_topics([ORDERS, READINGS])
    for listed, what in [
        ([ORDERS], "'readings' was created and is gone"),
        ([ORDERS, READINGS, Topic(b"x" * 16, "x", 1, {}, 0)], "nobody created"),
        ([ORDERS, Topic(b"x" * 16, "readings", 1, {}, 0)], "another id"),
        ([ORDERS, Topic(READINGS.topic_id, "readings", 2, {}, 0)], "2 partitions"),
    ]:
        with pytest.raises(Broken, match=what):
            court.ledger.check_topics(listed)


def test_a_topic_whose_change_was_cut_short_may_be_either(court):
    late = Topic(b"l" * 16, "late", 2, {}, 0)
    court.ledger.creating("late", 2)
    court.ledger.growing("readings", 3)
    court.ledger.deleting("orders")
    court.ledger.check_topics([late, Topic(READINGS.topic_id, "readings", 3, {}, 0)])
    assert {name: facts.existence for name, facts in court.ledger.topics.items()} == {
        "orders": "gone",
        "readings": "sure",
        "late": "sure",
    }
    with pytest.raises(Broken, match="deletion was acknowledged"):
        court.ledger.check_topics([late, ORDERS, READINGS])


def test_a_deleted_topic_takes_its_batches_along_and_they_must_not_come_back_under_its_name(court):
    call, [append] = court.publish(b"1")
    court.acknowledge(call, 0, 10)
    court.ledger.deleting("orders")
    court.ledger.deleted("orders")
    assert court.ledger.log(ORDERS.topic_id, 0) == []
    again = Topic(b"O" * 16, "orders", 2, {}, 0)
    court.ledger.created(court.ledger.creating("orders", 2), again)
    with pytest.raises(Broken, match="published elsewhere"):
        court.saw(append, 0, 10, topic=again)


def test_an_excused_tail_may_be_gone_or_there_but_not_halved(court):
    first, _ = court.publish(b"1")
    court.acknowledge(first, 0, 10)
    second, appends = court.publish(b"2", b"3")
    court.acknowledge(second, 2, 11)
    assert len(court.ledger.excuse(11)) == 2
    assert [batch.base_offset for batch in court.ledger.log(ORDERS.topic_id, 0)] == [0]
    court.saw(appends[0], 2, 11)
    with pytest.raises(Broken, match="half of an append"):
        court.ledger.settle(set())
