import json

from gateway.cli.round_trip import TOPIC_PREFIX
from tests.gateway.cli.conftest import Node


def test_every_way_in_comes_out_every_way(node: Node) -> None:
    trips = node.rows("check")
    assert all(trip["passed"] for trip in trips)
    assert {(trip["way_in"], trip["way_out"]) for trip in trips if trip["way_out"]} == {
        (way_in, way_out)
        for way_in in ("rest", "websocket", "kafka")
        for way_out in ("rest", "rest (latest value)", "sse", "websocket", "kafka")
    }
    assert not [topic for topic in node.rows("topics", "list") if topic["name"].startswith(TOPIC_PREFIX)]


def test_a_token_that_may_publish_only_fails_on_the_ways_out(node: Node, tmp_path) -> None:
    token = tmp_path / "token"
    scopes = [flag for action in ("create", "publish", "delete") for flag in ("--scope", f"{action}:{TOPIC_PREFIX}*")]
    node.ok("tokens", "create", "checker", "--role", "admin", *scopes, "--ttl", "1h", "--out", str(token))
    result = node.call("check", "--json", "--token-file", str(token))
    assert result.exit_code == 1, result.output
    trips = [json.loads(line) for line in result.stdout.splitlines()]
    assert {trip["passed"] for trip in trips if not trip["way_out"]} == {True}
    assert {trip["passed"] for trip in trips if trip["way_out"]} == {False}
    words = {"kafka": "TOPIC_AUTHORIZATION_FAILED"}
    assert all(words.get(trip["way_out"], "Not allowed") in trip["problem"] for trip in trips if trip["way_out"])
