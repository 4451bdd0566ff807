"""What verbs print: tables for people, one JSON object a line for programs. Results go to stdout, remarks to stderr."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.failures import printable

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS = 10_000

# Terminals take some of these as the start of a control sequence; JSON lets them stand inside texts.
_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


def console() -> Console:
    """As wide as the terminal; in a file or pipe, as wide as its lines are."""
    from rich.console import Console

    plain = Console(highlight=False, markup=False, soft_wrap=True)
    if not plain.is_terminal:
        plain.width = PIPE_COLUMNS
    return plain


def print_json(document: Any) -> None:
    click.echo(json_line(json.dumps(document, ensure_ascii=False)))


def json_line(text: str) -> str:
    """JSON text made safe to show: the same document, with C1 control characters escaped."""
    return text.translate(_JSON_ESCAPES)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
    """Columns named in `right` hold numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    console().print(table)


def print_facts(facts: Mapping[str, Any], *, err: bool = False) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{click.style(name.ljust(width), dim=True)}  {printable(str(value))}", err=err)


def show_time(timestamp_ms: int) -> str:
    """UTC, to the millisecond, sortable as text."""
    moment = datetime.fromtimestamp(timestamp_ms / 1_000, UTC)
    return moment.isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")


def show_size(size_bytes: float) -> str:
    for unit in ("B", "KB", "MB"):
        if size_bytes < 1_000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1_000
    return f"{size_bytes:.1f} GB"
