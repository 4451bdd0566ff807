"""What idempotent and transactional producers are refused with, part of the broker's tree of errors. Names follow Kafka's.

BrokerError
└── ProducerProblem
    ├── OutOfOrderSequence          a batch before this one is missing, or this one is too old to be known
    ├── InvalidProducerEpoch        a newer run of the same producer has written already
    ├── ProducerFenced              the same, told by the coordinator of transactions
    ├── InvalidTransactionState     the transaction is not at a point where this is possible
    │   └── NotInTransaction            a partition or group that was not added to it
    ├── InvalidProducerIdMapping    the producer id is not that of the transactional id
    ├── InvalidTransactionTimeout   longer than the node allows, or none
    ├── TransactionalIdInvalid      empty, or too long
    └── TransactionalIdUnknown      nobody has used this transactional id
"""

from __future__ import annotations

from broker.errors import BrokerError

NAME_CHARS_SHOWN = 128


class ProducerProblem(BrokerError):
    """About a producer id, its sequence or its transaction; nothing was stored."""


class OutOfOrderSequence(ProducerProblem):
    def __init__(self, producer_id: int, topic: str, partition: int, found: int, expected: int) -> None:
        self.producer_id, self.found, self.expected = producer_id, found, expected
        super().__init__(
            f"producer {producer_id} sent sequence {found} to {topic}/{partition}, where {expected} follows: "
            "a batch between was lost, or this one was sent long ago"
        )


class InvalidProducerEpoch(ProducerProblem):
    def __init__(self, producer_id: int, found: int, current: int) -> None:
        self.producer_id, self.found, self.current = producer_id, found, current
        super().__init__(f"producer {producer_id} has epoch {found} and {current} is in use: a newer run of it took its place")


class ProducerFenced(ProducerProblem):
    def __init__(self, transactional_id: str) -> None:
        self.transactional_id = transactional_id[:NAME_CHARS_SHOWN]
        super().__init__(f"another producer with transactional id {self.transactional_id!r} took this one's place; stop this one")


class InvalidTransactionState(ProducerProblem):
    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"not possible at this point of a transaction: {reason}")


class NotInTransaction(InvalidTransactionState):
    """`what` is named as a user knows it."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what} was not added to the transaction")


class InvalidProducerIdMapping(ProducerProblem):
    def __init__(self, transactional_id: str) -> None:
        self.transactional_id = transactional_id[:NAME_CHARS_SHOWN]
        super().__init__(f"transactional id {self.transactional_id!r} has no such producer id; ask for one (InitProducerId)")


class InvalidTransactionTimeout(ProducerProblem):
    def __init__(self, timeout_ms: int, limit_ms: int) -> None:
        self.timeout_ms, self.limit_ms = timeout_ms, limit_ms
        super().__init__(
            f"a transaction's timeout of {timeout_ms} ms is not between 1 and transactions.timeout_max_ms, {limit_ms}"
        )


class TransactionalIdInvalid(ProducerProblem):
    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"transactional id: {reason}")


class TransactionalIdUnknown(ProducerProblem):
    def __init__(self, transactional_id: str) -> None:
        self.transactional_id = transactional_id[:NAME_CHARS_SHOWN]
        super().__init__(f"transactional id {self.transactional_id!r} is not known: no producer used it in the last days")
