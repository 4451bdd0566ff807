"""How a verb ends when it does not end well. The exit code says whose turn it is.

    Failure
    ├── Refused       1   the node answered and said no: its problem document (RFC 9457) is shown
    ├── Unusable      2   what was asked for cannot be done from here: a flag, a file, a node that will not start
    ├── Unreachable   3   no node answered at the other end
    └── Interrupted 130   Ctrl-C before the end, as shells count it

Click's own usage errors are 2 as well. No message holds a token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, Any

import click

JSON_MODE = "gateway.cli.json"

# Members of a problem document that RFC 9457 gives a meaning; the rest are facts of this problem.
STANDARD_MEMBERS = frozenset({"type", "title", "status", "detail", "instance"})


class Failure(click.ClickException):
    """Shown on stderr: as text, or as one JSON object where the verb was called with `--json`."""

    def __init__(self, title: str, detail: str = "", what_to_do: str = "") -> None:
        super().__init__(title)
        self.title, self.detail, self.what_to_do = title, detail, what_to_do
        self.as_json = False

    def facts(self) -> dict[str, Any]:
        """What `--json` prints, empty members left out."""
        members = {"title": self.title, "detail": self.detail, "what_to_do": self.what_to_do, "exit_code": self.exit_code}
        return {name: value for name, value in members.items() if value not in ("", None)}

    def lines(self) -> list[str]:
        lines = [self.title]
        if self.detail:
            lines.append(f"  detail      {self.detail}")
        if self.what_to_do:
            lines.append(f"  what to do  {self.what_to_do}")
        return lines

    def show(self, file: IO[Any] | None = None) -> None:
        if self.as_json:
            click.echo(json.dumps({"error": self.facts()}), file=file, err=file is None)
            return
        first, *rest = self.lines()
        click.echo(click.style("sprawl: ", fg="red", bold=True) + printable(first), file=file, err=file is None)
        for line in rest:
            click.echo(printable(line), file=file, err=file is None)


class Refused(Failure):
    """The node's own words. `problem` is its problem document, `request_id` finds the request in its log."""

    exit_code = 1

    def __init__(self, problem: Mapping[str, Any], request_id: str | None = None, what_to_do: str = "") -> None:
        self.problem = dict(problem)
        self.request_id = request_id or _text(problem.get("instance"))
        super().__init__(
            _text(problem.get("title")) or f"the node answered {problem.get('status', 'with an error')}",
            _text(problem.get("detail")) or "",
            what_to_do or _text(problem.get("what_to_do")) or WHAT_TO_DO.get(_status(problem), ""),
        )

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "request_id": self.request_id, "problem": self.problem}

    def lines(self) -> list[str]:
        lines = super().lines()
        facts = {name: value for name, value in self.problem.items() if name not in STANDARD_MEMBERS and name != "what_to_do"}
        if facts:
            lines.append("  facts       " + ", ".join(f"{name} {_short(value)}" for name, value in facts.items()))
        if self.request_id:
            lines.append(f"  request id  {self.request_id}")
        return lines


class Unusable(Failure):
    exit_code = 2


class Unreachable(Failure):
    exit_code = 3


class Interrupted(Failure):
    exit_code = 130


# A node's details end with what to do, in terms of its protocols; this is what is said of the command line alone.
WHAT_TO_DO = {
    401: "give a token by --token-file or SPRAWL_TOKEN, or name the home of a node on this machine by --home",
}


def printable(text: str) -> str:
    """The text with control characters written as escapes: what others published must not drive this terminal."""
    return text.translate(_ESCAPES)


# C0 without tab, DEL, and C1, which some terminals take as the start of a control sequence.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x00, 0x09), *range(0x0A, 0x20), *range(0x7F, 0xA0))}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _status(problem: Mapping[str, Any]) -> int:
    status = problem.get("status")
    return status if isinstance(status, int) else 0
