"""The audit trail: who asked for what, and what became of it. JSON lines, mode 0600, never dropped, never with content.

    {"at": "...", "event": "access", "action": "create", "resource": "orders", "outcome": "allowed", "principal": "token:ab2c...",
     "proved_by": "token", "credential": "ab2c...", "peer": "127.0.0.1:40114", "protocol": "rest", "session": "..."}

The file is made to be followed and moved away by others: it is opened again when it was moved.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from gateway.errors import Busy
from gateway.observe.lines import LinesFull, LineWriter
from gateway.observe.logs import AppendedFile, redacted
from security.principal import Session

RETRY_AFTER_MS = 1_000
FIELD_CHARACTERS_MAX = 512


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One line."""

    at: str
    event: str
    action: str
    resource: str
    outcome: str
    reason: str = ""
    principal: str = ""
    proved_by: str = ""
    credential: str = ""
    peer: str = ""
    protocol: str = ""
    session: str = ""


_encoder = msgspec.json.Encoder()

# What was allowed is told again and again by the same caller on the same thing: such lines differ in time and session only.
TEMPLATES_MAX = 1_024
_AT, _ID = "0000-00-00T00:00:00.000Z", "sprawl-session-id"
_PLAIN = re.compile(r"[A-Za-z0-9._-]+")


def _line(at: str, event: str, session: Session | None, id: str, action: str, resource: str, outcome: str, reason: str) -> str:
    bounded = (resource[:FIELD_CHARACTERS_MAX], outcome, reason[:FIELD_CHARACTERS_MAX])
    if session is None:
        entry = Entry(at, event, action, *bounded)
    else:
        who = session.principal
        proof = (who.name, who.proved_by, who.credential_id or "", session.peer, session.protocol, id)
        entry = Entry(at, event, action, *bounded, *proof)
    return redacted(_encoder.encode(entry).decode())


class AuditLog:
    """Raises `OSError` when the file cannot be opened. `clock_ms` is Unix time."""

    def __init__(self, path: Path, clock_ms: Callable[[], int], *, lines_max: int) -> None:
        self._clock_ms = clock_ms
        self._lines_max = lines_max
        self._second = 0
        self._second_text = ""
        self._told_ms = (-1, "")  # the time told last, and its text
        self._templates: dict[tuple[object, ...], tuple[str, str]] = {}
        self._last: tuple[tuple[object, ...], str, str] = ((), "", "")
        self._writer = LineWriter(AppendedFile(path), name="audit", lines_max=lines_max, lossy=False)

    @property
    def failure(self) -> str | None:
        """Why the disk takes no audit lines; None when it does. A node that cannot audit is not ready."""
        return self._writer.failure

    def record(self, event: str, session: Session | None, action: str, resource: str, outcome: str, reason: str = "") -> None:
        """Add one line; `session` is None before anybody is known. Raises `gateway.errors.Busy` when the disk takes none."""
        same = (session, event, action, resource, outcome, reason)
        last = self._last
        if same == last[0]:  # a connection that publishes: only the time differs
            line = f"{last[1]}{self._now()}{last[2]}"
        elif session is not None and not reason and _PLAIN.fullmatch(session.id):
            begins, ends = self._template(event, session, action, resource, outcome)
            ends = f'{ends}{redacted(session.id)}"}}'
            line = f"{begins}{self._now()}{ends}"
            self._last = (same, begins, ends)
        else:
            line = _line(self._now(), event, session, "" if session is None else session.id, action, resource, outcome, reason)
        try:
            self._writer.put(line.encode())
        except LinesFull as full:
            raise Busy("logging.audit_queue_lines_max", full.lines_max, RETRY_AFTER_MS) from None

    def _template(self, event: str, session: Session, action: str, resource: str, outcome: str) -> tuple[str, str]:
        """What stands before the time, and between it and the session's id, which is the last; redacted already."""
        who = session.principal
        key = (event, action, resource, outcome, who.name, who.proved_by, who.credential_id, session.peer, session.protocol)
        found = self._templates.get(key)
        if found is None:
            if len(self._templates) >= TEMPLATES_MAX:
                self._templates.clear()
            line = _line(_AT, event, session, _ID, action, resource, outcome, "")
            begins, _, rest = line.partition(_AT)
            assert rest.endswith(_ID + '"}'), "the session is the last member"
            found = self._templates[key] = (begins, rest.removesuffix(f'{_ID}"}}'))
        return found

    def flush(self) -> bool:
        """Wait until all lines so far are written; False when the disk does not take them in time."""
        return self._writer.flush()

    def close(self) -> bool:
        """False when lines were left unwritten."""
        return self._writer.close()

    def _now(self) -> str:
        """RFC 3339 with milliseconds; the text of a second is made once, it would cost half of the line."""
        now_ms = self._clock_ms()
        told_ms, text = self._told_ms
        if now_ms == told_ms:
            return text
        second, millisecond = divmod(now_ms, 1_000)
        if second != self._second:
            self._second = second
            self._second_text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        text = f"{self._second_text}.{millisecond:03}Z"
        self._told_ms = (now_ms, text)
        return text
