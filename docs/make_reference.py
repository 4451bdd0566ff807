"""The pages under docs/reference, made from the code they describe: `make docs` writes them, a test compares.

    python docs/make_reference.py            write the pages
    python docs/make_reference.py --check    exit 1 and name the pages that are not what the code says

A page cannot forget a setting, metric, error, topic config or verb: it is made by walking the tables that the node itself uses.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
import msgspec

from broker.delivery.consumers import ConsumerStats
from broker.delivery.shared_scan import SharedScanStats
from broker.groups.groups import GroupStats
from broker.stats import EngineStats
from broker.topics.configs import RULES
from broker.transactions.transactions import TransactionStats
from gateway.cli.main import VERBS, main
from gateway.config import Config, variable_of
from gateway.endpoints.kafka.fetch_sessions import SessionCounts
from gateway.endpoints.send_buffers import SendBuffersStats
from gateway.errors import TABLE, Translation
from gateway.observe.metrics import NAMESPACE, Family, Metrics
from security.identity.failed_logins import FailedLoginStats

PULLED: Mapping[str, type] = {
    "engine": EngineStats,
    "consumers": ConsumerStats,
    "shared_scan": SharedScanStats,
    "send_buffers": SendBuffersStats,
    "groups": GroupStats,
    "transactions": TransactionStats,
    "failed_logins": FailedLoginStats,
    "kafka_fetch_sessions": SessionCounts,
}
"""What `gateway/app.py` gives to `Metrics.pull`; a test scrapes a node and finds every name on the page."""

FOLDER = Path(__file__).parent / "reference"
MADE = "<!-- Made by docs/make_reference.py from the code; `make docs` writes it again. -->\n"


def configuration() -> str:
    """Every setting: name, type, default, what it means."""
    lines = [
        "# Configuration",
        "",
        "Defaults < TOML file (`<home>/sprawl.toml`, or `--config`) < environment variables < flags. A setting has one name",
        "everywhere: `rest.records_max` is `records_max` in the table `[rest]` of the file, and `SPRAWL_REST_RECORDS_MAX` in the",
        "environment. `${NAME}` in the file takes an environment variable. `sprawl serve --print-config` prints all of it, with",
        "where each value came from. Sizes are in bytes, times in milliseconds, unless the name says otherwise.",
    ]
    for prefix, section in _sections(Config, ""):
        lines += ["", f"## [{prefix}]", ""]
        if text := _first_paragraph(section.__doc__):
            lines += [text, ""]
        lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        documented = field_docs(section)
        default = section()
        for name, kind in get_type_hints(section, include_extras=True).items():
            if _is_section(kind):
                continue
            cells = (f"`{prefix}.{name}`", _type(kind), _code(getattr(default, name)), documented.get(name, ""))
            lines.append(_row(*cells))
    lines += ["", f"As environment variables: `{variable_of('rest.records_max')}` and so on."]
    return _page(lines)


def undocumented_settings() -> list[str]:
    """Settings without a sentence of their own."""
    return [
        f"{prefix}.{name}"
        for prefix, section in _sections(Config, "")
        for name, kind in get_type_hints(section).items()
        if not _is_section(kind) and not field_docs(section).get(name)
    ]


def topic_configs() -> str:
    """Kafka's names where Kafka has one."""
    lines = ["# Topic configs", "", "Set by `sprawl topics create --config name=value`, `topics alter`, or REST.", ""]
    lines += ["| config | default | meaning |", "|---|---|---|"]
    lines += [_row(f"`{rule.name}`", _code(rule.default), rule.doc) for rule in RULES.values()]
    return _page(lines)


def metrics() -> str:
    """Every family that `/metrics` renders whatever happens, and the gauges pulled from the parts of the node."""
    lines = [
        "# Metrics",
        "",
        "`GET /metrics`, Prometheus text format; it needs the right `metrics`. Labels hold words of the program only: no topic,",
        "key, principal or address ever becomes a label.",
        "",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    kept = Metrics()
    labels = {found.name: found.names for found in vars(kept).values() if isinstance(found, Family)}
    for family in kept.registry.collect():
        if not family.name.startswith(NAMESPACE):
            continue
        total = "_total" if family.type == "counter" else ""
        told = ", ".join(f"`{name}`" for name in labels.get(family.name, ()))
        lines.append(_row(f"`{family.name}{total}`", family.type, told, family.documentation))
    for prefix, snapshot in PULLED.items():
        documented = field_docs(snapshot)
        lines += [
            _row(f"`sprawl_{prefix}_{name}`", "gauge", "", documented.get(name, name.replace("_", " ")))
            for name in _numbers_of(snapshot, "")
        ]
    lines.append(_row("`process_*`", "", "", "resident memory, CPU seconds, open files of the process"))
    return _page(lines)


def errors() -> str:
    """Every row of the one table, in all protocols' words."""
    lines = [
        "# Errors",
        "",
        "REST answers with a problem document (RFC 9457) whose `type` is `/problems/<slug>`; WebSocket messages carry the same",
        "document, and close codes where the connection ends with it. Members beside the standard ones are named under *facts*.",
        "",
        "| slug | HTTP | WebSocket close | title | facts | when |",
        "|---|---|---|---|---|---|",
    ]
    rows: dict[str, tuple[Translation, list[type[BaseException]]]] = {}
    for kind, row in TABLE.items():
        rows.setdefault(row.slug, (row, []))[1].append(kind)
    for slug, (row, kinds) in sorted(rows.items(), key=lambda item: (item[1][0].status, item[0])):
        facts = ", ".join(f"`{name}`" for name in row.facts)
        when = "; ".join(dict.fromkeys(filter(None, (_first_paragraph(_own_doc(kind)) for kind in kinds))))
        close = "" if row.websocket_close is None else str(row.websocket_close)
        lines.append(_row(f"`{slug}`", str(row.status), close, row.title, facts, when))
    return _page(lines)


def command_line() -> str:
    """Every verb with its flags, as `--help` shows them."""
    lines = [
        "# Command line",
        "",
        "Every verb has `--json`: one JSON object a line on standard output, errors too (on standard error). Exit codes: 0 done,",
        "1 the node refused, 2 usage or the node did not start, 3 no node answered, 130 interrupted.",
    ]
    for verb in VERBS:
        lines += ["", f"## sprawl {verb}"]
        for path, command in _commands(main, verb, "sprawl"):
            lines += ["", f"### `{path}`", "", "```text", _help(path, command), "```"]
    return _page(lines)


PAGES: Mapping[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "topic-configs.md": topic_configs,
    "metrics.md": metrics,
    "errors.md": errors,
    "command-line.md": command_line,
}


def field_docs(section: type) -> dict[str, str]:
    """The sentence under each field, those of classes above included; a comment line above counts for the fields it heads."""
    found: dict[str, str] = {}
    for kind in reversed(section.__mro__):
        if kind.__module__.split(".")[0] in ("gateway", "broker", "security"):
            found |= _docs_of_source(kind)
    return found


def _docs_of_source(kind: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    found: dict[str, str] = {}
    for statement, following in pairwise(body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def _sections(section: type, prefix: str) -> Iterator[tuple[str, type]]:
    for name, kind in get_type_hints(section).items():
        if _is_section(kind):
            path = f"{prefix}{name}"
            yield from [(path, kind)] if any(not _is_section(inner) for inner in get_type_hints(kind).values()) else []
            yield from _sections(kind, f"{path}.")


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _numbers_of(snapshot: type, prefix: str) -> Iterator[str]:
    for name, kind in get_type_hints(snapshot).items():
        if _is_section(kind):
            yield from _numbers_of(kind, f"{prefix}{name}_")
        elif kind in (int, float, bool):
            yield f"{prefix}{name}"


def _commands(group: click.Command, name: str, path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    assert isinstance(group, click.Group)
    command = group.get_command(context, name)
    assert command is not None
    yield f"{path} {name}", command
    if isinstance(command, click.Group):
        for inner in command.list_commands(click.Context(command)):
            yield from _commands(command, inner, f"{path} {name}")


def _help(path: str, command: click.Command) -> str:
    settings = {**main.context_settings, "max_content_width": 110, "terminal_width": 110}
    with click.Context(command, info_name=path, **settings) as context:
        return command.get_help(context).rstrip()


def _type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    if hasattr(kind, "__metadata__"):
        kind = get_args(kind)[0]
    names = {int: "integer", float: "number", str: "text", bool: "true or false"}
    return names.get(kind, {dict: "table", tuple: "list", list: "list"}.get(get_origin(kind), "table"))


def _code(value: Any) -> str:
    if value in ("", (), {}, []):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def _own_doc(kind: type) -> str | None:
    return kind.__dict__.get("__doc__")


def _first_paragraph(text: str | None) -> str:
    return " ".join(inspect.cleandoc(text).split("\n\n")[0].split()) if text else ""


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _page(lines: list[str]) -> str:
    title, *rest = lines
    return "\n".join([title, "", MADE, *rest[1:]]).rstrip() + "\n"


def stale() -> list[str]:
    """Pages that are missing or say something else than the code."""
    return [name for name, make in PAGES.items() if not (FOLDER / name).exists() or (FOLDER / name).read_text() != make()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        if old := stale():
            sys.exit(f"not what the code says any more: {', '.join(old)}; run `make docs`")
    else:
        FOLDER.mkdir(exist_ok=True)
        for name, make in PAGES.items():
            (FOLDER / name).write_text(make())
