"""Damage to what was synced: flipped bits by class of file, and batches of a rolled-back past put back.

Both leave the judge's rules standing: what is lost by them must lie in a range that the node reports. One loss has no range: the
newest group, before anything on the media confirms it, cannot be told from a torn write, so the node may cut it (decision 0001,
section 10) and says `tail_cut`. `doubtful_sequence` computes from the bytes before and after what may be cut at most.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from broker.log.layout import (
    BATCH_MAGIC,
    FILE_HEADER_BYTES,
    GROUP_HEADER_BYTES,
    TRAILER_BYTES,
    GroupHeader,
    parse_batch_header,
    parse_file_header,
    parse_frame_header,
    parse_group_header,
    parse_trailer,
)
from tests.simulation.disk import Media
from tests.simulation.store import StoresMedia
from tests.simulation.trace import Trace

FILE_CLASSES = {
    "journal": "journal/",
    "segment": "segments/",
    "snapshot": "state/",
    "manifest": "manifest.",
}
STATE_BLOCKS_NEWEST = 4
EDGE_BYTES = 200
"""Headers and trailers are small and matter most: two flips in five go to the first or the last bytes of a file."""


@dataclass(frozen=True)
class Flip:
    """One file whose bits were flipped, and what it held before."""

    kind: str
    media: Media
    path: str
    before: bytes
    after: bytes
    positions: Sequence[int]

    @property
    def there(self) -> bool:
        """Whether nobody has written these places anew since; the file may have grown."""
        now = self.media.content(self.path) if self.path in self.media.names else b""
        return all(now[at : at + 1] == self.after[at : at + 1] for at in self.positions)


class Damager:
    """Damages the media of a machine that is off, or the synced content of one that runs."""

    def __init__(self, random: random.Random, trace: Trace, data: Media, keys: Media, stores: StoresMedia) -> None:
        self._random = random
        self._trace = trace
        self._data, self._keys, self._stores = data, keys, stores
        self.flips: list[Flip] = []
        self._journals_hit: list[Flip] = []
        self._view_flipped = False
        self._twins: dict[Slot, bytes] = {}
        self._pairs: dict[Slot, tuple[bytes, bytes]] = {}
        self.doubtful: int | None = None
        """The commit sequence from which on flipped journals may be cut; None when every flip lies in confirmed groups."""

    @property
    def view_damaged(self) -> bool:
        """By a flipped bit, or torn by a power cut: either way it will be rebuilt."""
        return self._view_flipped or self._stores.torn

    @property
    def journals_hit(self) -> bool:
        return any(flip.there for flip in self._journals_hit)

    def flip(self) -> None:
        """Flip one to three bits of one file of a random class.

        Never the view together with a journal: until a snapshot, a topic stands in these two only, and what both have lost no
        node can bring back.
        """
        kinds = [kind for kind in FILE_CLASSES if self._files(kind)]
        kinds += ["key store"] if self._keys.files() else []
        if self.view_damaged:
            kinds = [kind for kind in kinds if kind != "journal"]
        elif self._stores.folders and not self.journals_hit:
            kinds.append("view")
        if not kinds:
            return
        kind = self._random.choice(kinds)
        if kind == "view":
            self._stores.flip(self._random.choice(sorted(self._stores.folders)))
            self._view_flipped = True
            return
        media = self._keys if kind == "key store" else self._data
        path = self._random.choice(media.files() if kind == "key store" else self._files(kind))
        before, journals = media.content(path), self._journals()
        if before:
            positions = [self._position(len(before)) for _ in range(self._random.randint(1, 3))]
            media.flip(path, positions)
            self._changed(Flip(kind, media, path, before, media.content(path), positions), journals)
            self._trace.count(f"flipped bits in a {kind}")

    def flip_state(self) -> bool:
        """Flip a bit in the state block of one of the newest frames of a journal that is not sealed.

        What was acknowledged stands in the view as well by then; what a power cut took from the view's tail does not.
        """
        if self.view_damaged:
            return False
        open_journals = [path for path in self._files("journal") if not _is_sealed(self._data.content(path))]
        contents = [(path, self._data.content(path)) for path in open_journals]
        # Not one that a power cut has torn: it is not all there.
        blocks = [(path, block) for path, data in contents for block in state_blocks(data) if block[-1] < len(data)]
        if not blocks:
            return False
        path, block = self._random.choice(blocks[-STATE_BLOCKS_NEWEST:])
        before, journals = self._data.content(path), self._journals()
        positions = [self._random.choice(block)]
        self._data.flip(path, positions)
        self._changed(Flip("journal", self._data, path, before, self._data.content(path), positions), journals)
        self._trace.count("flipped bit in the state of a journal")
        return True

    def flip_sealed(self) -> None:
        """Flip one bit of a sealed file under the running node."""
        sealed = [path for path in self._files("segment") + self._files("journal") if _is_sealed(self._data.content(path))]
        if sealed:
            path = self._random.choice(sealed)
            before = self._data.content(path)
            positions = [self._position(len(before))]
            self._data.flip(path, positions)
            if path.startswith(FILE_CLASSES["journal"]):
                self._journals_hit.append(Flip("journal", self._data, path, before, self._data.content(path), positions))
            self._trace.count("flipped bit under the running node")

    def wrote(self, path: str, data: bytes) -> None:
        """Everything that goes to disk: two batches sealed for one slot come up when the first was lost with the power."""
        for position, slot in slots(data):
            batch = data[position : position + slot.sealed_bytes]
            former = self._twins.setdefault(slot, batch)
            if former != batch:
                self._pairs[slot] = (former, batch)

    def put_back(self, has_successor: Callable[[Slot], bool]) -> bool:
        """Put a batch that a power cut took away in the place of the one that was sealed for its slot afterwards.

        Every check but the chain passes: it is authentic, of this cluster, topic, partition, offset and sequence. The batch
        after it was chained to the other one.
        """
        for slot, (former, batch) in list(self._pairs.items()):
            for path in self._data.files():
                position = self._data.content(path).find(batch)
                if position >= 0 and has_successor(slot):
                    del self._pairs[slot]
                    before, journals = self._data.content(path), self._journals()
                    self._data.replace(path, former, position)
                    kind = "journal" if path.startswith("journal/") else "segment"
                    places = range(position, position + len(former))
                    self._changed(Flip(kind, self._data, path, before, self._data.content(path), places), journals)
                    self._trace.count("rolled-back batch put back")
                    return True
        return False

    def _changed(self, flip: Flip, journals: dict[str, bytes]) -> None:
        self.flips.append(flip)
        if flip.kind == "journal":
            self._journals_hit.append(flip)
        found = doubtful_sequence(journals, self._journals())
        if found is not None:
            self.doubtful = found if self.doubtful is None else min(self.doubtful, found)

    def refusal_is_right(self) -> bool:
        """Whether what was damaged exists nowhere else, so that the node has to refuse to start."""
        hit = {(flip.kind, flip.path) for flip in self.flips if flip.there}
        stores = [path for path in self._keys.files() if not path.endswith(".new")]
        copies = {"manifest": [path for path in self._files("manifest") if not path.endswith(".new")], "key store": stores}
        every_copy = any(all((kind, path) in hit for path in paths) for kind, paths in copies.items() if paths)
        return every_copy or (self.view_damaged and any(kind == "snapshot" for kind, _ in hit))

    def restore(self) -> None:
        """The operator brings the small files back from a backup."""
        for flip in reversed(self.flips):
            if flip.kind != "journal" and flip.there:
                flip.media.replace(flip.path, flip.before)

    def forget(self) -> None:
        """The node has started: journals are read and sealed, the view is whole. The rest may still lie there unread."""
        self.flips = [flip for flip in self.flips if flip.kind != "journal" and flip.there]
        self._view_flipped = self._stores.torn = self._stores.tail_lost = False
        self.doubtful = None

    def _journals(self) -> dict[str, bytes]:
        return {path: self._data.content(path) for path in self._files("journal")}

    def _files(self, kind: str) -> list[str]:
        return [path for path in self._data.files() if path.startswith(FILE_CLASSES[kind])]

    def _position(self, size: int) -> int:
        where = self._random.random()
        if where < 0.2:
            return self._random.randrange(min(EDGE_BYTES, size))
        if where < 0.4:
            return size - 1 - self._random.randrange(min(EDGE_BYTES, size))
        return self._random.randrange(size)


def _is_sealed(data: bytes) -> bool:
    return parse_trailer(data[-TRAILER_BYTES:]) is not None


def doubtful_sequence(before: dict[str, bytes], after: dict[str, bytes]) -> int | None:
    """The first commit sequence of a changed group that no intact group header says was synced."""
    walked = [(path, place, header) for path, data in before.items() for place, header in _groups(data)]
    intact = [h for path, place, h in walked if parse_group_header(after.get(path, b""), place, h.salt) == h]
    durable_through = max((header.durable_through for header in intact), default=0)
    changed = [
        header.first_sequence
        for path, place, header in walked
        if header.number > durable_through
        and _group_bytes(before[path], place, header) != _group_bytes(after[path], place, header)
    ]
    return min(changed, default=None)


def _groups(data: bytes) -> list[tuple[int, GroupHeader]]:
    """Groups of an undamaged journal, by position."""
    file = parse_file_header(data[:FILE_HEADER_BYTES])
    found: list[tuple[int, GroupHeader]] = []
    position = FILE_HEADER_BYTES
    while file is not None and (header := parse_group_header(data, position, file.salt)) is not None:
        found.append((position, header))
        position += GROUP_HEADER_BYTES + header.body_bytes
    return found


def state_blocks(data: bytes) -> list[range]:
    """Where the state entries of an undamaged journal's frames stand, sealed, oldest first."""
    found: list[range] = []
    for position, group in _groups(data):
        at, end = position + GROUP_HEADER_BYTES, position + GROUP_HEADER_BYTES + group.body_bytes
        while at < end and (parsed := parse_frame_header(data, at)) is not None:
            at += parsed[0].frame_bytes
            if parsed[0].state_bytes:
                found.append(range(at - parsed[0].state_bytes, at))
    return found


def _group_bytes(data: bytes, position: int, header: GroupHeader) -> bytes:
    return data[position : position + GROUP_HEADER_BYTES + header.body_bytes]


@dataclass(frozen=True)
class Slot:
    """What a batch's place in the log is bound to; two batches sealed for one slot differ in nothing but content and chain."""

    topic_id: bytes
    partition: int
    base_offset: int
    last_offset_delta: int
    sequence: int
    sealed_bytes: int


def slots(data: bytes) -> list[tuple[int, Slot]]:
    """Sealed batches in some bytes, by position."""
    found: list[tuple[int, Slot]] = []
    at = data.find(BATCH_MAGIC)
    while at >= 0:
        header = parse_batch_header(data, at)
        if header is None or at + header.sealed_bytes > len(data):
            at = data.find(BATCH_MAGIC, at + 1)
            continue
        slot = Slot(
            header.topic_id,
            header.partition,
            header.base_offset,
            header.last_offset_delta,
            header.sequence,
            header.sealed_bytes,
        )
        found.append((at, slot))
        at = data.find(BATCH_MAGIC, at + header.sealed_bytes)
    return found
