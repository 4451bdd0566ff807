"""Frames: four bytes of length, then as many bytes. Small ones are cut from one buffer, large ones are read in place.

The caller reads from its socket into `buffer()`, says how much came with `updated(n)`, takes what is whole with `next()`, and
says `settle()` before it lets others have their turn: the buffer is one for all connections, and who leaves something in it gets
one of its own until that is taken. (10,000 idle connections with 64 KiB each would be 640 MiB.)

A length is judged before anything is allocated for it, by the bound and then by `admit`, which may say "not now": the frame then
stays where it is until `next` is asked again. Memory grows with what really came: whoever announces 100 MiB and sends nothing has
1 MiB allocated.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.wire.kafka.errors import MessageInvalid

LENGTH_BYTES = 4
BUFFER_BYTES = 64 * 1024
LARGE_BYTES = 16 * 1024  # frames above are read in place: a copy of one costs more than an allocation
FIRST_BYTES = 1024 * 1024
GLANCE_BYTES = 64  # read of what follows a large frame: most often another one, and the rest of it is then read in place

_shared = memoryview(bytearray(BUFFER_BYTES))


class FrameTooLarge(MessageInvalid):
    def __init__(self, size: int, bytes_max: int) -> None:
        self.size, self.bytes_max = size, bytes_max
        super().__init__(f"a frame of {size} bytes, where {bytes_max} are the most")


class Frames:
    """`bytes_max` may be changed while frames come: before authentication it is low. `admit` is asked once with the size of each
    frame above LARGE_BYTES. What `next` returned is the caller's.
    """

    __slots__ = (
        "_admit",
        "_begin",
        "_end",
        "_large",
        "_large_end",
        "_large_size",
        "_large_was_last",
        "_view",
        "bytes_max",
        "more",
    )

    def __init__(self, bytes_max: int, admit: Callable[[int], bool] = lambda size: True) -> None:
        self.bytes_max, self._admit = bytes_max, admit
        self._view = _shared
        self._begin = self._end = 0
        self._large: bytearray | None = None  # a large frame under way, as far as memory was taken for it
        self._large_size = self._large_end = 0
        self._large_was_last = False
        self.more = False  # whether something has come that `next` has not returned

    @property
    def partial(self) -> bool:
        """Whether a frame has begun and is not whole."""
        return self._large is not None or self._begin < self._end

    @property
    def held_bytes(self) -> int:
        """Memory of the large frame under way."""
        return 0 if self._large is None else len(self._large)

    @property
    def large_size(self) -> int:
        """Bytes that the large frame under way has announced; 0 without one."""
        return 0 if self._large is None else self._large_size

    @property
    def large_come(self) -> int:
        """Bytes of it that have come."""
        return 0 if self._large is None else self._large_end

    @property
    def room(self) -> bool:
        """Whether `buffer` has any: not before `next` has taken what is whole."""
        return self._end - self._begin < BUFFER_BYTES if self._large is None else self._large_end < self._large_size

    def buffer(self, size_hint: int = -1) -> memoryview:
        """Where to read to, whatever size is asked for; never empty while there is room."""
        if self._large is None:
            if self._begin and self._end > BUFFER_BYTES // 2:
                self._compact()
            if self._large_was_last and self._begin == self._end:
                return self._view[self._end : self._end + GLANCE_BYTES]
            return self._view[self._end :]
        if self._large_end == len(self._large):
            grown = bytearray(min(self._large_size, 2 * len(self._large)))
            grown[: self._large_end] = self._large
            self._large = grown
        return memoryview(self._large)[self._large_end :]

    def updated(self, size: int) -> None:
        self.more = True
        if self._large is None:
            self._end += size
        else:
            self._large_end += size

    def settle(self) -> bool:
        """Leave nothing in the shared buffer, and keep no other that is empty. Whether there is room."""
        if self._begin == self._end:
            self._view = _shared
            self._begin = self._end = 0
            return self._large is None or self._large_end < self._large_size
        elif self._view is _shared:
            self._view = memoryview(bytearray(BUFFER_BYTES))
            left = self._end - self._begin
            self._view[:left] = _shared[self._begin : self._end]
            self._begin, self._end = 0, left
        return self.room

    def next(self) -> memoryview | None:
        """The next whole frame without its length, or None. MessageInvalid, FrameTooLarge: nothing after it can be read."""
        if self._large is not None:
            return self._take_large()
        have = self._end - self._begin - LENGTH_BYTES
        if have < 0:
            return None
        begin = self._begin + LENGTH_BYTES
        size = int.from_bytes(self._view[self._begin : begin], "big", signed=True)
        if size < 0:
            raise MessageInvalid(f"a frame of {size} bytes")
        if size > self.bytes_max:
            raise FrameTooLarge(size, self.bytes_max)
        if have >= size and size <= LARGE_BYTES:
            frame = memoryview(bytes(self._view[begin : begin + size]))
            self._large_was_last = False
            if have > size:
                self._begin, self.more = begin + size, True
            else:
                self._begin = self._end = 0
                self.more = False
            return frame
        if size <= LARGE_BYTES:
            if begin + size > BUFFER_BYTES:
                self._compact()
            return None
        if not self._admit(size):
            return None
        self._begin_large(begin, size)
        return self._take_large()

    def _begin_large(self, begin: int, size: int) -> None:
        have = min(self._end - begin, size)
        self._large = bytearray(min(size, FIRST_BYTES))
        self._large[:have] = self._view[begin : begin + have]
        self._large_size, self._large_end = size, have
        self._begin = begin + have
        if self._begin == self._end:
            self._begin = self._end = 0

    def _take_large(self) -> memoryview | None:
        if self._large is None or self._large_end < self._large_size:
            return None
        frame = memoryview(self._large)
        self._large = None
        self._large_was_last = True
        self.more = self._begin < self._end
        return frame

    def _compact(self) -> None:
        left = self._end - self._begin
        self._view[:left] = bytes(self._view[self._begin : self._end])
        self._begin, self._end = 0, left
