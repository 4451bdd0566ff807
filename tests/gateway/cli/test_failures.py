"""What a verb shows when it does not end well, and the code it ends with."""

import io
import json

import pytest

from gateway.cli.failures import Failure, Refused, Unreachable, Unusable, printable

PROBLEM = {
    "type": "/problems/access-denied",
    "title": "Not allowed",
    "status": 403,
    "detail": "lift-7 may not read orders, no role allows it: ask an administrator for a role that allows it",
    "instance": "req-17",
    "principal": "lift-7",
    "action": "read",
}


def shown(failure: Failure, *, as_json: bool = False) -> str:
    failure.as_json = as_json
    file = io.StringIO()
    failure.show(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("failure", "code"), [(Refused(PROBLEM), 1), (Unusable("no such file"), 2), (Unreachable("no answer"), 3)]
)
def test_the_exit_code_says_whose_turn_it_is(failure: Failure, code: int) -> None:
    assert failure.exit_code == code


def test_a_problem_document_is_shown_as_title_detail_advice_facts_and_request_id() -> None:
    first, *rest = shown(Refused(PROBLEM)).splitlines()
    assert first.endswith("sprawl: \x1b[0mNot allowed") or first == "sprawl: Not allowed"
    assert rest == [
        f"  detail      {PROBLEM['detail']}",
        "  facts       principal lift-7, action read",
        "  request id  req-17",
    ]


def test_where_the_command_line_knows_what_to_do_it_says_so() -> None:
    assert "--token-file" in shown(Refused({"status": 401, "title": "The token has expired"}))


def test_json_holds_the_whole_problem() -> None:
    error = json.loads(shown(Refused(PROBLEM), as_json=True))["error"]
    assert error["problem"] == PROBLEM
    assert (error["exit_code"], error["request_id"], error["title"]) == (1, "req-17", "Not allowed")


def test_a_problem_that_is_no_problem_document_still_has_a_title() -> None:
    assert "the node answered 502" in shown(Refused({"status": 502}))
    assert "the node answered with an error" in shown(Refused({}))


def test_control_characters_of_a_node_do_not_reach_the_terminal() -> None:
    hostile = Refused({"title": "\x1b]0;owned\x07", "detail": "a\nb\x9b31m", "x": "\x1b[2J"})
    text = shown(hostile)
    assert not {"\x1b", "\x07", "\x9b"} & set(text)
    assert "\\x1b]0;owned\\x07" in text


@pytest.mark.parametrize(
    ("text", "safe"), [("tab\tstays", "tab\tstays"), ("\r\n", "\\x0d\\x0a"), ("\x7f", "\\x7f"), ("grün", "grün")]
)
def test_printable(text: str, safe: str) -> None:
    assert printable(text) == safe
