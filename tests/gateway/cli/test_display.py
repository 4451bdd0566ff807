"""What is printed."""

import json

import pytest

from gateway.cli.display import json_line, print_facts, print_json, print_table, show_size, show_time
from gateway.cli.subscribe import show_record


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1.0 KB"), (2_500_000, "2.5 MB"), (7.2e9, "7.2 GB"), (7.2e13, "72000.0 GB")],
)
def test_sizes(size: float, shown: str) -> None:
    assert show_size(size) == shown


def test_times_are_utc_to_the_millisecond() -> None:
    assert show_time(1_795_438_800_250) == "2026-11-23 13:00:00.250Z"


def test_json_stays_the_same_document_and_has_no_control_characters() -> None:
    text = json.dumps({"a": "\x1b[2J\x9b31m\x7f grün"}, ensure_ascii=False)
    safe = json_line(text)
    assert json.loads(safe) == json.loads(text)
    assert not {"\x1b", "\x9b", "\x7f"} & set(safe)


def test_tables_and_facts_escape_what_others_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("topic", "partitions"), [("a\x1b[2Jb", 3), ("[bold]x[/bold]", 1)], right=("partitions",))
    print_facts({"topic": "\x07"})
    print_json({"topic": "\x9b"})
    shown = capsys.readouterr().out
    assert "a\\x1b[2Jb" in shown
    assert "[bold]x[/bold]" in shown
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)


@pytest.mark.parametrize(
    ("members", "shown"),
    [
        ({"key": "eu/7", "value": {"amount": 12}}, 'eu/7  {"amount":12}'),
        ({"key": None, "text": "two\nlines"}, "two\\x0alines"),
        ({"key": "", "text": "x"}, "  x"),
        ({"key64": "/w==", "value64": "AAE="}, "base64:/w==  base64:AAE="),
        ({"key": "k", "value": None}, "k  (no value)"),
    ],
)
def test_a_record_is_one_line(members: dict[str, object], shown: str) -> None:
    record = {"topic": "orders", "partition": 3, "offset": 17, "timestamp": 0, **members}
    line = show_record(record)
    assert line.replace("\x1b[2m", "").replace("\x1b[36m", "").replace("\x1b[0m", "").endswith(f"orders/3 @ 17  {shown}")
    assert "\n" not in line
