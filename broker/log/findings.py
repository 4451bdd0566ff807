"""What examining a data folder finds, and how bad it is."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Severity(StrEnum):
    """From worst to least."""

    LOST = "lost"
    """Records or state that nothing else holds. `repair` puts the range on record; a backup may still have it."""

    MENDABLE = "mendable"
    """Damaged, and everything in it stands somewhere else whole: `repair`, or the next start, writes it again."""

    HARMLESS = "harmless"
    """Damaged bytes that nothing is read from any more. They go when the file is merged."""

    QUARANTINED = "quarantined"
    """Lost before, and on record: readers are told of the range."""

    NOTE = "note"
    """No damage: what a node that was killed leaves behind, and the next start tidies up."""


class Finding(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """Something about bytes [start, end) of a file; both None: the whole file, or bytes that are not there.

    `what`: key store, manifest, header, group, frame, state, batch, chain, footer, index, snapshot, view, tail, orphan, or bytes.
    `topic` is its name, or its id in hex when no state names it; offsets [from_offset, to_offset) of its partition.
    """

    severity: Severity
    what: str
    path: str
    problem: str
    start: int | None = None
    end: int | None = None
    topic: str | None = None
    partition: int | None = None
    from_offset: int | None = None
    to_offset: int | None = None
    topic_id: bytes = b""

    def describe(self) -> str:
        where = self.path if self.start is None else f"{self.path} bytes {self.start} to {_last(self.start, self.end)}"
        which = "" if self.topic is None else f" ({self.topic}/{self.partition}{self._offsets()})"
        return f"{self.severity.value}: {where}: {self.what}{which}: {self.problem}"

    def _offsets(self) -> str:
        if self.from_offset is None:
            return ""
        return f" offsets {self.from_offset} to {_last(self.from_offset, self.to_offset)}"


def _last(start: int, end: int | None) -> int:
    return start if end is None else max(start, end - 1)


class Examined(msgspec.Struct, gc=False, kw_only=True):
    """What was looked at in one file. `shredded`: batches of deleted topics, which nothing opens."""

    path: str
    kind: str
    bytes: int = 0
    groups: int = 0
    batches: int = 0
    shredded: int = 0


class Verdict(msgspec.Struct, gc=False, kw_only=True):
    """Of a whole data folder."""

    cluster_id: str
    files: list[Examined] = []
    findings: list[Finding] = []

    @property
    def whole(self) -> bool:
        """Nothing is lost that was not on record before, and nothing waits to be mended."""
        return not any(found.severity in (Severity.LOST, Severity.MENDABLE) for found in self.findings)

    def count(self, severity: Severity) -> int:
        return sum(found.severity is severity for found in self.findings)
