"""The bytes of a journal, read a region at a time: memory that was just used is read into again, which costs a tenth of the page
faults of a whole file at once (0.04 against 0.3 to 1.1 s for 512 MiB here), and the size of a file no longer counts.
"""

from __future__ import annotations

from broker.log.layout import (
    FILE_HEADER_BYTES,
    GROUP_HEADER_BYTES,
    GROUP_MAGIC,
    FileHeader,
    parse_file_header,
    parse_group_header,
    salt_of_groups,
)
from broker.log.scan import FoundGroup
from broker.seams import File

HEADS_BYTES = 16 * 1024  # read along with a group's header: the headers of small groups behind it
SEARCH_BYTES = 1024 * 1024


class JournalBytes:
    """`end`: where the file's data ends; what the file does not have of it reads as nothing."""

    def __init__(self, file: File | bytes, end: int) -> None:
        self._file = file
        self.end = end
        self._groups: list[FoundGroup] | None = None
        self._window = (0, b"")

    @staticmethod
    def of(data: JournalBytes | bytes, end: int) -> JournalBytes:
        return data if isinstance(data, JournalBytes) else JournalBytes(data, end)

    def read(self, start: int, end: int) -> bytes:
        end = min(end, self.end)
        if start >= end:
            return b""
        return self._file[start:end] if isinstance(self._file, bytes) else self._file.read_at(start, end - start)

    def header(self) -> FileHeader | None:
        return parse_file_header(self.read(0, FILE_HEADER_BYTES))

    def salt(self) -> int:
        """Of the file header, or, where that is damaged, of the first group header that checks under its own."""
        header = self.header()
        return salt_of_groups(self.read(0, self.end)) if header is None else header.salt

    def groups(self) -> list[FoundGroup]:
        """As `broker.log.scan.groups` finds them in the whole file."""
        if self._groups is None:
            self._groups = self._walk(self.salt())
        return self._groups

    def _walk(self, salt: int) -> list[FoundGroup]:
        found: list[FoundGroup] = []
        position, last = FILE_HEADER_BYTES, -1
        while position + GROUP_HEADER_BYTES <= self.end:
            header = parse_group_header(self._head(position), 0, salt)
            if header is None or header.number <= last:
                position = self._search(position + 1)
                if position < 0:
                    break
                continue
            found.append(FoundGroup(position, header))
            last = header.number
            following = position + GROUP_HEADER_BYTES + header.body_bytes
            believable = following == self.end or parse_group_header(self._head(following), 0, salt) is not None
            position = following if believable else position + GROUP_HEADER_BYTES
        self._window = (0, b"")
        return found

    def _head(self, position: int) -> bytes:
        start, data = self._window
        if not start <= position <= start + len(data) - GROUP_HEADER_BYTES:
            start, data = self._window = (position, self.read(position, position + HEADS_BYTES))
        return data[position - start : position - start + GROUP_HEADER_BYTES]

    def _search(self, position: int) -> int:
        """The next place where a group may begin; -1 when there is none."""
        overlap = len(GROUP_MAGIC) - 1
        while position + overlap < self.end:
            data = self.read(position, position + SEARCH_BYTES)
            at = data.find(GROUP_MAGIC)
            if at >= 0:
                return position + at
            if len(data) <= overlap:
                return -1
            position += len(data) - overlap
        return -1
