"""What a consumer refuses, part of the broker's tree of errors.

BrokerError
├── ConsumerInvalid         a name, option or argument out of its range
├── ConsumerUnknown         no consumer of this owner has the name
├── ConsumerConflict        the name is in use for something else
├── ConsumersFull           one owner, or the node, has as many consumers as may be
├── ConsumerTakenOver       another connection uses the consumer now
└── ConsumerDeleted         the consumer was deleted, or given away, while it was in use
"""

from __future__ import annotations

from broker.errors import BrokerError

NAME_CHARS_SHOWN = 128


class ConsumerInvalid(BrokerError):
    """A consumer's name, one of its options, or an argument of nack, reject, extend or credit is out of its range."""

    def __init__(self, member: str, reason: str) -> None:
        self.member = member
        super().__init__(f"{member}: {reason}")


class ConsumerUnknown(BrokerError):
    """The caller owns no consumer of this name (of others' consumers only administrators are told)."""

    def __init__(self, name: str) -> None:
        self.name = name[:NAME_CHARS_SHOWN]
        super().__init__(f"there is no consumer {self.name!r}: `sprawl consumers list` shows which there are")


class ConsumerConflict(BrokerError):
    """The name is that of a consumer with another filter, or, where one is given away, of one that the new owner has already."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name[:NAME_CHARS_SHOWN]
        super().__init__(f"consumer {self.name!r} {reason}")


class ConsumersFull(BrokerError):
    """As many durable consumers exist as may be; delete one that is not needed any more."""

    def __init__(self, limit_name: str, limit: int) -> None:
        self.limit_name, self.limit = limit_name, limit
        super().__init__(f"{limit_name} ({limit}) is reached; delete a consumer that is not needed any more")


class ConsumerTakenOver(BrokerError):
    """Another connection opened the same consumer: the newer one has it, this one is told."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"consumer {name!r} is used by a newer connection; what was in flight here is delivered there")


class ConsumerDeleted(BrokerError):
    """The consumer was deleted or given to another owner while it was in use."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"consumer {name!r} was deleted, or given to another owner, meanwhile")
