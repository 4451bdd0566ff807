"""Where replayed records go: to the terminal, into a file, into another topic."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import click
import msgspec
import uuid_utils

from gateway.cli.client import Client, Retry
from gateway.cli.display import json_line
from gateway.cli.failures import Unusable
from gateway.cli.inputs import Line
from gateway.cli.publisher import Publisher, batches
from gateway.cli.replay_window import Replayed
from gateway.cli.subscribe import show_record

# Where a record lay; the target gives it a new place.
_PLACE_MEMBERS = ("topic", "partition", "offset", "cursor")


class Target(Protocol):
    def write(self, records: Sequence[Replayed]) -> None:
        """Returns when they have arrived there."""

    def close(self) -> None: ...


class Terminal:
    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def write(self, records: Sequence[Replayed]) -> None:
        for text, _ in records:
            click.echo(json_line(text.decode()) if self._as_json else show_record(msgspec.json.decode(text)))

    def close(self) -> None:
        pass


class NdjsonFile:
    """Record objects, one a line, as `sprawl publish --envelope --file` takes them. What others may not read is mode 0600."""

    def __init__(self, path: Path, *, append: bool) -> None:
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_EXCL)
        self._path = path
        try:
            self._file = os.open(path, flags | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise Unusable(f"{path} exists", what_to_do="give another name, or --append to add to it") from None
        except OSError as error:
            raise self._failed(error) from None

    def write(self, records: Sequence[Replayed]) -> None:
        left = memoryview(b"".join([text + b"\n" for text, _ in records]))
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        try:
            os.fsync(self._file)
        except OSError as error:
            raise self._failed(error) from None
        finally:
            os.close(self._file)

    def _failed(self, error: OSError) -> Unusable:
        return Unusable(f"{self._path} cannot be written", str(error.strerror))


class OtherTopic:
    """Publishes them, in order. Ids and times are kept unless the options say otherwise; expiry is kept always."""

    def __init__(self, client: Client, topic: str, retry: Retry, *, new_ids: bool, new_times: bool) -> None:
        self._publisher = Publisher(client, topic, "durable", retry)
        self._dropped = (*_PLACE_MEMBERS, *(["id"] if new_ids else ()), *(["timestamp"] if new_times else ()))

    def write(self, records: Sequence[Replayed]) -> None:
        lines = [Line(self._outgoing(text), number, 0) for number, (text, _) in enumerate(records, 1)]
        for batch in batches(lines):
            self._publisher.send(batch)

    def close(self) -> None:
        pass

    def _outgoing(self, text: bytes) -> bytes:
        """With an id in any case, so that a request that is sent again can be told apart."""
        members: Mapping[str, msgspec.Raw] = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        kept = {name: member for name, member in members.items() if name not in self._dropped}
        if bytes(kept.get("id", b"null")) == b"null":
            kept["id"] = msgspec.Raw(b'"%s"' % str(uuid_utils.uuid7()).encode())
        return msgspec.json.encode(kept)
