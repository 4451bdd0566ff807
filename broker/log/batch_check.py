"""Opening every batch of a file, in the order of its offsets, against what an index or a directory says of it: the part of
`broker/log/examination.py` that is about batches and their chain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from broker.log.findings import Severity
from broker.log.footer import DamagedRange
from broker.log.layout import FLAG_REWRITTEN, NO_TAG, BatchHeader, DirectoryEntry, chain_begins_anew, parse_batch_header
from broker.log.reader import PartitionKey
from broker.log.scan import FoundBatch
from broker.log.sealing import batch_tag
from broker.seams import File
from security.errors import KeyProblem, KeyShredded, TamperedData

if TYPE_CHECKING:
    from broker.log.examination import FileExamination

WINDOW_BYTES = 8 * 1024 * 1024

Progress = Callable[[int], None]


class Expected(NamedTuple):
    """What an index or a directory says that lies at a position. `tag` None: a directory does not name it."""

    position: int
    size: int
    topic_id: bytes
    partition: int
    base_offset: int
    next_offset: int
    tag: bytes | None


class Span(NamedTuple):
    """The offsets that one file holds of a partition, and the chain at both ends."""

    path: str
    first_offset: int
    next_offset: int
    chain_in: bytes
    chain_out: bytes | None


class Window:
    """A file read forward in large pieces."""

    def __init__(self, file: File, end: int, progress: Progress) -> None:
        self._file = file
        self._end = end
        self._progress = progress
        self._start = 0
        self._data = b""

    def at(self, position: int, size: int) -> tuple[bytes, int]:
        """Bytes that hold [position, position + size) as far as the file does, and where in them it begins."""
        if position < self._start or position + size > self._start + len(self._data):
            wanted = max(size, min(WINDOW_BYTES, self._end - position))
            self._start, self._data = position, self._file.read_at(position, wanted)
            self._progress(len(self._data))
        return self._data, position - self._start


class Batches:
    """Opens the batches of one file in the order of their offsets, and follows the chain."""

    def __init__(self, of: FileExamination, known: dict[PartitionKey, list[DamagedRange]], *, whole: bool) -> None:
        """`whole`: offsets that are stepped over are lost; where an index names every batch they are on record already."""
        self._of = of
        self._known = known
        self._whole = whole
        self._last: dict[PartitionKey, tuple[Expected, bytes | None, int]] = {}
        self.spans: dict[PartitionKey, Span] = {}

    def check(self, data: bytes, at: int, want: Expected) -> None:
        place = (want.topic_id, want.partition)
        self._of.examined.batches += 1
        header = parse_batch_header(data, at)
        problem = self._problem(data, at, header, want)
        if problem == "shredded":
            self._of.examined.shredded += 1
            if header is None:
                gone = "the header of a batch that nothing opens any more, its topic being deleted"
                self._of.add(Severity.HARMLESS, "batch", gone, want.position, want.position + want.size)
            return
        last = self._last.get(place)
        if self._whole and last is not None and want.base_offset > last[0].next_offset:
            self._missing(want, last[0].next_offset)
        if problem is not None or header is None:
            self._lost("batch", want, problem or "its header is damaged")
            self._last[place] = (want, None, 0)
            self._note(place, want, NO_TAG, None)
            return
        if last is not None and _breaks(last, want, header):
            self._lost("chain", last[0], "not the batch that its successor was chained to")
        tag = batch_tag(data, at, header)
        self._last[place] = (want, tag, header.flags)
        # What follows rewritten batches names the one that was replaced: only the footer says its tag.
        self._note(place, want, header.previous_tag, None if header.flags & FLAG_REWRITTEN else tag)

    def _problem(self, data: bytes, at: int, header: BatchHeader | None, want: Expected) -> str | None:
        if want.topic_id not in self._of.live:
            return "shredded"
        if header is None:
            return "its header is damaged"
        named = (header.topic_id, header.partition, header.base_offset, header.next_offset, header.sealed_bytes)
        if named != (want.topic_id, want.partition, want.base_offset, want.next_offset, want.size):
            return "another batch lies in its place"
        if want.tag is not None and data[at + want.size - len(want.tag) : at + want.size] != want.tag:
            return "its tag is not the one on record"
        try:
            self._of.keys.open_batch(data, at, header)
        except TamperedData:
            return "does not authenticate"
        except KeyShredded:
            return "shredded"
        except KeyProblem as problem:
            return f"its key is not to be had ({problem})"
        return None

    def _note(self, place: PartitionKey, want: Expected, chain_in: bytes, tag: bytes | None) -> None:
        span = self.spans.get(place)
        first, begin = (want.base_offset, chain_in) if span is None else (span.first_offset, span.chain_in)
        self.spans[place] = Span(self._of.entry.path, first, want.next_offset, begin, tag)

    def _on_record(self, place: PartitionKey, start: int, end: int) -> bool:
        return any(known.start <= start and end <= known.end for known in self._known.get(place, ()))

    def _lost(self, what: str, want: Expected, problem: str) -> None:
        if not self._on_record((want.topic_id, want.partition), want.base_offset, want.next_offset):
            self._of.add(
                Severity.LOST,
                what,
                problem,
                want.position,
                want.position + want.size,
                place=(want.topic_id, want.partition),
                offsets=(want.base_offset, want.next_offset),
            )

    def _missing(self, want: Expected, start: int) -> None:
        place = (want.topic_id, want.partition)
        if not self._on_record(place, start, want.base_offset):
            self._of.add(Severity.LOST, "batch", "missing", place=place, offsets=(start, want.base_offset))


def _breaks(last: tuple[Expected, bytes | None, int], want: Expected, header: BatchHeader) -> bool:
    """Whether the batch before, ending where this one begins, is not the one this names."""
    before, tag, flags = last
    if tag in (None, header.previous_tag) or before.next_offset != want.base_offset:
        return False
    return not chain_begins_anew(flags, header.flags)


def named(batch: FoundBatch) -> Expected:
    """What a batch's own header, or the directory of its frame, says of it."""
    named: BatchHeader | DirectoryEntry | None = batch.entry or batch.header
    assert named is not None
    following = named.base_offset + named.last_offset_delta + 1
    return Expected(batch.position, named.sealed_bytes, named.topic_id, named.partition, named.base_offset, following, None)


def joined(spans: Sequence[Span], log_start: int) -> Iterator[tuple[Span, int, int, str]]:
    """Where the spans of one partition do not meet: the span, the offsets in question, and why."""
    offset: int = log_start
    tag = NO_TAG if log_start == 0 else None  # the very first batch of a partition names no predecessor
    for span in sorted(spans, key=lambda span: span.first_offset):
        if span.first_offset > offset:
            yield span, offset, span.first_offset, "missing between two files"
        elif tag is not None and span.first_offset == offset and span.chain_in != tag:
            yield span, max(0, offset - 1), offset, "not what its successor was chained to"
        offset, tag = max(offset, span.next_offset), span.chain_out
