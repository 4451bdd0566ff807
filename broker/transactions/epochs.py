"""Epochs of a transactional id: which one its next producer gets, and who is told the same again (KIP-360, KIP-890)."""

from __future__ import annotations

import msgspec

from broker.producers.errors import InvalidTransactionState, ProducerFenced
from broker.transactions.transaction import EPOCH_EXHAUSTED, NO_PRODUCER, Transaction, TransactionState

ProducerAndEpoch = tuple[int, int]


def taken_over(transactional_id: str, transaction: Transaction, expected: ProducerAndEpoch | None, spare: int) -> Transaction:
    """As its next producer has it. `expected`: what that one has now, where it is the same that goes on; asked for again, it gets
    the same again. `spare`: a new producer id, used where the epochs run out. ProducerFenced."""
    if expected is not None:
        same, exhausted = expected[0] == transaction.producer_id, expected[1] >= EPOCH_EXHAUSTED
        repeated = same and expected[1] == transaction.last_epoch
        rotated = expected[0] == transaction.last_producer_id and exhausted
        if (repeated or rotated) and not transaction.is_ongoing:
            return msgspec.structs.replace(transaction, state=TransactionState.EMPTY)
        if not same or expected[1] != transaction.epoch:
            raise ProducerFenced(transactional_id)
    # Who goes on has the epoch that aborts what it had open; to others that epoch is never told.
    following = next_epoch(transaction, spare, besides=1 if transaction.is_ongoing and expected is None else 0)
    last_epoch = NO_PRODUCER if expected is None else transaction.epoch
    return msgspec.structs.replace(following, last_epoch=last_epoch, state=TransactionState.EMPTY)


def next_epoch(transaction: Transaction, spare: int, besides: int = 0) -> Transaction:
    """The next epoch, or a new producer id when they run out. `besides`: epochs that a fencing abort takes first."""
    if transaction.epoch + besides >= EPOCH_EXHAUSTED:
        assert spare != NO_PRODUCER
        return msgspec.structs.replace(
            transaction, producer_id=spare, epoch=0, last_producer_id=transaction.producer_id, last_epoch=transaction.epoch
        )
    epoch = transaction.epoch + besides + 1
    return msgspec.structs.replace(transaction, epoch=epoch, last_epoch=transaction.epoch)


def is_repeated(transaction: Transaction, producer: ProducerAndEpoch) -> bool:
    """An end that bumped the epoch was asked for again, because its answer was lost."""
    if transaction.state not in (TransactionState.COMPLETE_COMMIT, TransactionState.COMPLETE_ABORT):
        return False
    if producer[0] == transaction.producer_id:
        return producer[1] == transaction.epoch - 1
    return producer[0] == transaction.last_producer_id and producer[1] >= EPOCH_EXHAUSTED and transaction.epoch == 0


def ended_state(*, commit: bool) -> TransactionState:
    return TransactionState.COMPLETE_COMMIT if commit else TransactionState.COMPLETE_ABORT


def require_ended_so(transaction: Transaction, *, commit: bool) -> None:
    if transaction.state is not ended_state(commit=commit):
        asked = "commit" if commit else "abort"
        raise InvalidTransactionState(f"it is {transaction.state.label}, there is nothing to {asked}")
