"""A consumer over WebSocket while its node is killed again and again: what was confirmed stays, everything else comes again."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from tests.services.node_process import NodeProcess

RECORDS = 200
KILLS = 2
SECRET_NAME = "planted-consumer-3f9a"
SECRET_DETAIL = "planted detail 77c1"


class Books:
    def __init__(self) -> None:
        self.confirmed: set[int] = set()
        self.asked: set[int] = set()
        self.rejected: set[int] = set()
        self.received: set[int] = set()


async def publish(node: NodeProcess) -> None:
    headers = {"Authorization": f"Bearer {node.token}"}
    async with httpx.AsyncClient(base_url=node.url, verify=node.tls(), headers=headers, trust_env=False) as http:
        for first in range(0, RECORDS, 50):
            records = [{"key": f"k{number % 7}", "value": number} for number in range(first, first + 50)]
            assert (await http.post("/v1/topics/jobs/records", json=records)).status_code == 200


async def letters(node: NodeProcess) -> list[Any]:
    headers = {"Authorization": f"Bearer {node.token}"}
    async with httpx.AsyncClient(base_url=node.url, verify=node.tls(), headers=headers, trust_env=False) as http:
        answer = await http.get("/v1/topics/jobs.dlq/dead-letters", params={"limit": "1000"})
        found: list[Any] = answer.json()["dead_letters"] if answer.status_code == 200 else []
        return found


async def consume(node: NodeProcess, books: Books, chance: random.Random, *, kill_after: int | None) -> None:
    """Acknowledge and reject a bit at a time, and kill the node between an answer and the next."""
    url = f"wss{node.url.removeprefix('https')}/v1/ws"
    headers = {"Authorization": f"Bearer {node.token}"}
    answers = 0
    doubtful = books.asked - books.confirmed  # their answers were lost: they may come again or not
    asked: dict[int, tuple[str, int]] = {}
    async with websockets.connect(url, ssl=node.tls(), additional_headers=headers, proxy=None) as socket:
        options = {"retry_backoff_ms": 0, "in_flight_max": 60, "deliveries_max": 100}
        wanted = {"op": "consume", "sub": "s", "consumer": SECRET_NAME, "topic": "jobs", "from": "earliest", "options": options}
        await socket.send(json.dumps(wanted))
        while True:
            message = json.loads(await asyncio.wait_for(socket.recv(), 20))
            if message["op"] == "settled":
                op, number = asked[message["ref"]]
                assert message.get("unknown", []) == []
                books.confirmed.add(number)
                books.rejected |= {number} if op == "reject" else set()
                answers += 1
                if answers == kill_after:
                    node.kill()
                    return
                if kill_after is None and len(books.confirmed | doubtful) == RECORDS:
                    return
            assert message["op"] != "error", message
            for record in message["records"] if message["op"] == "records" else []:
                number = record["value"]
                assert number not in books.confirmed, f"{number} was confirmed, and came again"
                books.received.add(number)
                op = "reject" if number % 13 == 0 else "ack" if kill_after is None or chance.random() < 0.7 else ""
                if op:
                    ref = len(asked)
                    asked[ref] = (op, number)
                    books.asked.add(number)
                    reason = {"reason": SECRET_DETAIL} if op == "reject" else {}
                    await socket.send(json.dumps({"op": op, "sub": "s", "tags": [record["tag"]], "ref": ref, **reason}))


@pytest.mark.services
@pytest.mark.timeout(120)
async def test_nothing_confirmed_comes_again_and_nothing_else_is_lost(tmp_path: Path) -> None:
    books, chance = Books(), random.Random(11)
    with NodeProcess(tmp_path / "home", **{"log.journal_file_bytes": 65_536}) as node:
        await publish(node)
        for _ in range(KILLS):
            await consume(node, books, chance, kill_after=chance.randint(5, 60))
            node.start()
            found = [letter["record"]["value"] for letter in await letters(node)]
            assert books.rejected <= set(found) <= books.asked
            assert len(found) == len(set(found))
            books.confirmed |= set(found)  # the letter is there, so the record is settled, told or not
        await consume(node, books, chance, kill_after=None)
        assert books.received == set(range(RECORDS))
        assert node.stop() == 0
    on_disk = b"".join(path.read_bytes() for path in sorted((tmp_path / "home" / "data").rglob("*")) if path.is_file())
    for secret in (SECRET_NAME, SECRET_DETAIL):
        assert secret.encode() not in on_disk
