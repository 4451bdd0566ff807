"""Ids in blocks are what single ones are: valid, unique, ascending."""

from __future__ import annotations

from itertools import islice

from broker.message_ids import BLOCK_RECORDS, message_ids
from broker.record import valid_message_id


def test_ids_are_valid_ascending_and_unique_beyond_a_block() -> None:
    ids = list(islice(message_ids(), 2 * BLOCK_RECORDS + 10))
    assert all(map(valid_message_id, ids))
    assert ids == sorted(set(ids))


def test_requests_in_the_same_millisecond_share_no_ids_and_follow_each_other() -> None:
    ids = [one for _ in range(5_000) for one in islice(message_ids(), 3)]
    assert ids == sorted(set(ids))
