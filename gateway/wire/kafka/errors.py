"""What bytes from a Kafka client can be refused for before anybody has looked at what they ask for."""

from __future__ import annotations


class MessageInvalid(Exception):
    """Bytes that are no message of the kind that they claim to be: there is no telling where the next one begins or what it
    would mean, so the connection ends with it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
