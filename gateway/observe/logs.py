"""The node's log: JSON, one object a line, each with the id of the request it belongs to, never a secret.

    {"at": "2026-01-02T03:04:05.678Z", "level": "error", "logger": "gateway.errors", "message": "...", "request_id": "...",
     "error": {"type": "...", "message": "...", "frames": ["broker/log/journal.py:88 write", ...]}}

Two rules keep secrets and users' data out. Tokens and Authorization headers are cut out of the finished line, so it does not
matter by which field, exception or library they came. And of an exception that is not ours or the operating system's only type
and frames are written: the text of a `ValueError` or `KeyError` quotes what it choked on, and that may be somebody's record.
"""

from __future__ import annotations

import logging
import os
import re
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from broker.errors import BrokerError
from gateway.config import ConfigProblem
from gateway.errors import GatewayError
from gateway.observe.lines import LineWriter
from gateway.settings import LoggingSection
from security.errors import SecurityError

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is being worked on; empty outside of requests."""

FRAMES_MAX = 30
MESSAGE_CHARACTERS_MAX = 8_192
# Of an extra field.
ITEMS_MAX = 100
DEPTH_MAX = 4
STANDARD_ERROR = 2

# Their texts are written by us from facts that are no secrets, or by the operating system about files and sockets.
_SPEAKING = (BrokerError, SecurityError, GatewayError, ConfigProblem, OSError)
_RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}

# Shape: security/identity/tokens.py. The id is public and stays; a secret is cut also when it is only a part of one.
_TOKEN = re.compile(r"sprawl_([a-z2-7]{8,16})_[A-Za-z0-9_-]+")
_AUTHORIZATION = re.compile(
    r"""(?i)(authorization["'\\]*\s*[:=,]\s*(?:b?["'\\]+)?)(?:(?:bearer|basic|digest|negotiate)\s+)?[^\s"'\\,;]{4,}"""
)
# Also as the WebSocket sub-protocol `bearer.<token>`. 16 characters: "bearer token" is no secret.
_BEARER = re.compile(r"(?i)\b(bearer|basic)([ .]+)[A-Za-z0-9._~+/=-]{16,}")
_PRIVATE_KEY = re.compile(r"""-----BEGIN [A-Z ]*PRIVATE KEY-----[^"]*?(?:-----END [A-Z ]*PRIVATE KEY-----|(?=")|$)""")
# Looked for first, in lower case: five substring searches cost a fortieth of the four patterns on a line that has none of them.
_SUSPICIOUS = ("sprawl_", "authorization", "bearer", "basic", "private key")
_CUT = "[redacted]"


def redacted(text: str) -> str:
    """`text` without tokens, credentials in headers, and private keys."""
    lowered = text.lower()
    for word in _SUSPICIOUS:
        if word in lowered:
            return _cut(text)
    return text


def _cut(text: str) -> str:
    text = _TOKEN.sub(rf"sprawl_\1_{_CUT}", text)
    text = _AUTHORIZATION.sub(rf"\1{_CUT}", text)
    text = _BEARER.sub(rf"\1\2{_CUT}", text)
    return _PRIVATE_KEY.sub(_CUT, text)


class JsonFormatter(logging.Formatter):
    """One line of JSON per record; `extra` fields become members."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:MESSAGE_CHARACTERS_MAX].strip(),
        }
        if current := request_id.get():
            line["request_id"] = current
        line |= {name: _plain(value, DEPTH_MAX) for name, value in vars(record).items() if name not in _RECORD_FIELDS}
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = described(record.exc_info[1])
        return redacted(msgspec.json.encode(line).decode())


def _plain(value: Any, depth: int) -> Any:
    """As JSON has it. Objects by their repr, which knows what to hide; bytes not at all: base64 hides a token from `redacted`."""
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return value[:MESSAGE_CHARACTERS_MAX]
        case bytes() | bytearray() | memoryview():
            return f"<{len(value)} bytes>"
        case dict() if depth:
            return {str(key): _plain(inner, depth - 1) for key, inner in list(value.items())[:ITEMS_MAX]}
        case list() | tuple() | set() | frozenset() if depth:
            return [_plain(inner, depth - 1) for inner in list(value)[:ITEMS_MAX]]
        case _:
            return repr(value)[:MESSAGE_CHARACTERS_MAX]


def described(error: BaseException) -> dict[str, Any]:
    """Type, text where it may be told, frames from the outermost in, and the same of what it was raised from."""
    description: dict[str, Any] = {"type": f"{type(error).__module__}.{type(error).__qualname__}"}
    if isinstance(error, _SPEAKING):
        description["message"] = str(error)[:MESSAGE_CHARACTERS_MAX]
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES_MAX:]
    description["frames"] = [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
    if error.__cause__ is not None:
        description["caused_by"] = described(error.__cause__)
    return description


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-3:])


class LogHandler(logging.Handler):
    """Renders on the calling thread, where the request's id is known, and writes on another."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # never fail the caller; logging's own way would print the record, secrets included
            failed = {
                "level": "error",
                "logger": record.name,
                "message": "a line could not be rendered",
                "error": described(error),
            }
            line = msgspec.json.encode(failed).decode()
        self._writer.put(line.encode("utf-8", "backslashreplace"))


class NodeLog:
    """The log of a running node: on the root logger from `open_log` until `close`."""

    def __init__(self, writer: LineWriter, level: int) -> None:
        self._writer = writer
        self._root = logging.getLogger()
        self._level_before = self._root.level
        self._handler = LogHandler(writer)
        self._root.addHandler(self._handler)
        self._root.setLevel(level)

    @property
    def dropped_lines(self) -> int:
        return self._writer.dropped_lines

    def flush(self) -> bool:
        return self._writer.flush()

    def close(self) -> None:
        self._root.removeHandler(self._handler)
        self._root.setLevel(self._level_before)
        self._writer.close()


def open_log(settings: LoggingSection) -> NodeLog:
    """Begin to log as configured. Raises `OSError` when the log file cannot be opened."""
    sink = AppendedFile(Path(settings.file)) if settings.file else OpenDescriptor(STANDARD_ERROR)
    writer = LineWriter(sink, name="log", lines_max=settings.queue_lines_max, lossy=True)
    return NodeLog(writer, logging.getLevelNamesMapping()[settings.level.upper()])


class OpenDescriptor:
    """A sink on a descriptor that somebody else closes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> None:
        write_whole(self._descriptor, data)

    def close(self) -> None:
        pass


class AppendedFile:
    """A sink that appends to a file of mode 0600, and begins it again when it was moved away (logrotate's `create`)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = self._open()

    def write(self, data: bytes) -> None:
        if self._moved():
            fresh = self._open()  # first, since it may fail: a descriptor closed twice is by then another file's
            os.close(self._descriptor)
            self._descriptor = fresh
        write_whole(self._descriptor, data)

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._path, flags, 0o600)

    def _moved(self) -> bool:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return True
        here = os.fstat(self._descriptor)
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)


def write_whole(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
