"""The queue before the file: what waits, what is lost, and what never is."""

from __future__ import annotations

import threading

import pytest

from gateway.observe import lines
from gateway.observe.lines import LinesFull, LineWriter


class Sink:
    """A disk that can be stopped, and can fail."""

    def __init__(self) -> None:
        self.data = b""
        self.writes = 0
        self.closed = False
        self.failures: list[OSError] = []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()

    def write(self, data: bytes) -> None:
        self.entered.set()
        assert self.open.wait(10)
        if self.failures:
            raise self.failures.pop()
        self.data += data
        self.writes += 1

    def close(self) -> None:
        self.closed = True


def stopped(sink: Sink, *, lossy: bool) -> LineWriter:
    """Three lines at most, and one of them is with a disk that does not answer."""
    writer = LineWriter(sink, name="test", lines_max=3, lossy=lossy)
    sink.open.clear()
    writer.put(b"1")
    assert sink.entered.wait(10)
    return writer


def test_lines_come_in_their_order_and_many_in_one_write() -> None:
    sink = Sink()
    writer = LineWriter(sink, name="test", lines_max=1_000, lossy=False)
    for number in range(1_000):
        writer.put(b"%d" % number)
    assert writer.flush()
    assert sink.data == b"".join(b"%d\n" % number for number in range(1_000))
    assert sink.writes < 1_000
    assert writer.close()


def test_close_writes_what_waits() -> None:
    sink = Sink()
    writer = LineWriter(sink, name="test", lines_max=10, lossy=True)
    writer.put(b"last")
    assert writer.close()
    assert (sink.data, sink.closed) == (b"last\n", True)


class TestAtTheBound:
    def test_lossy_lines_are_dropped_and_counted(self) -> None:
        sink = Sink()
        writer = stopped(sink, lossy=True)
        for line in (b"2", b"3", b"4", b"5"):
            writer.put(line)
        assert writer.dropped_lines == 2
        sink.open.set()
        assert writer.flush()
        assert sink.data == b"1\n2\n3\n"
        writer.close()

    def test_others_are_refused_after_a_moment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lines, "ROOM_WAIT_S", 0.01)
        sink = Sink()
        writer = stopped(sink, lossy=False)
        writer.put(b"2")
        writer.put(b"3")
        with pytest.raises(LinesFull, match="3 lines wait for the disk"):
            writer.put(b"4")
        sink.open.set()
        assert writer.flush()
        assert sink.data == b"1\n2\n3\n"
        writer.close()

    def test_or_get_in_when_the_disk_answers_meanwhile(self) -> None:
        sink = Sink()
        writer = stopped(sink, lossy=False)
        writer.put(b"2")
        writer.put(b"3")
        threading.Timer(0.02, sink.open.set).start()
        writer.put(b"4")
        assert writer.flush()
        assert sink.data == b"1\n2\n3\n4\n"
        assert writer.dropped_lines == 0
        writer.close()


class TestADiskThatFails:
    def test_loses_lossy_lines_and_counts_them(self) -> None:
        sink = Sink()
        sink.failures = [OSError(28, "No space left on device")]
        writer = LineWriter(sink, name="test", lines_max=10, lossy=True)
        writer.put(b"1")
        assert writer.flush()
        assert (sink.data, writer.dropped_lines, writer.failure) == (b"", 1, "No space left on device")
        writer.put(b"2")
        assert writer.flush()
        assert (sink.data, writer.failure) == (b"2\n", None)
        writer.close()

    def test_is_asked_again_for_the_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lines, "RETRY_S", 0.01)
        sink = Sink()
        sink.failures = [OSError(28, "No space left on device"), OSError(5, "Input/output error")]
        writer = LineWriter(sink, name="test", lines_max=10, lossy=False)
        writer.put(b"1")
        assert writer.flush()
        assert (sink.data, writer.dropped_lines, writer.failure) == (b"1\n", 0, None)
        writer.close()

    def test_does_not_keep_the_node_from_ending(self) -> None:
        sink = Sink()
        sink.failures = [OSError(28, "No space left on device")] * 100
        writer = LineWriter(sink, name="test", lines_max=10, lossy=False)
        writer.put(b"1")
        assert writer.close() is False


def test_after_the_end_nothing_is_taken() -> None:
    for lossy in (True, False):
        writer = LineWriter(Sink(), name="test", lines_max=10, lossy=lossy)
        writer.close()
        if lossy:
            writer.put(b"late")
            assert writer.dropped_lines == 1
        else:
            with pytest.raises(LinesFull):
                writer.put(b"late")
