"""What one batch costs the node while it is handed to everybody."""

from __future__ import annotations

from gateway.endpoints.websocket_frames import JsonFrames
from gateway.pipeline import Incoming
from tests.gateway.endpoints.websocket.conftest import until

SUBSCRIPTIONS = 40


class Counted(bytes):
    """A frame; how many there are, and were at most at one time."""

    alive = peak = 0

    def __new__(cls, frame: bytes) -> Counted:
        cls.alive += 1
        cls.peak = max(cls.peak, cls.alive)
        return super().__new__(cls, frame)

    def __del__(self) -> None:
        Counted.alive -= 1


async def test_names_that_nobody_shares_are_not_gathered(node, monkeypatch):
    """A frame for each name, all of one batch at once, would be a hundred times what a connection may hold."""
    await node.publish("orders", 1)
    async with node.client() as client:
        for number in range(SUBSCRIPTIONS):
            assert (await client.ask({"op": "subscribe", "sub": f"s{number}", "address": "orders"}))["op"] == "subscribed"
        records = JsonFrames.records
        monkeypatch.setattr(JsonFrames, "records", lambda self, sub, chunk: Counted(records(self, sub, chunk)))
        large = [Incoming(b"k", b"x" * 300_000)]
        await node.pipeline.broker.publish("orders", large, durable=True, auto_create=True)
        heard = [await client.hear() for _ in range(SUBSCRIPTIONS)]
        assert {message["sub"] for message in heard} == {f"s{number}" for number in range(SUBSCRIPTIONS)}
        await until(lambda: Counted.alive == 0)
    assert 1 < Counted.peak <= 16  # 8 kept, and what the connection's 1 MiB holds
