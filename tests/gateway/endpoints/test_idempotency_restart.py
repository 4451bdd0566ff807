"""Idempotency keys across a node that is killed: what was answered is answered alike, what was not is stored once."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from gateway.cli.profile import load_profile

pytestmark = pytest.mark.services

KEYS = 300


def start_node(home: Path) -> tuple[subprocess.Popen[str], httpx.AsyncClient]:
    command = [sys.executable, "-m", "gateway.cli.main", "serve", "--home", str(home), "--json", "--set", "listeners.http.port=0"]
    command += ["--set", "listeners.kafka.port=0"]
    node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert node.stdout is not None
    assert node.stdout.readline(), "the node did not start"
    profile = load_profile(home)
    assert profile is not None
    context = ssl.create_default_context(cafile=profile.ca)
    headers = {"Authorization": f"Bearer {profile.token}"}
    return node, httpx.AsyncClient(base_url=profile.url, headers=headers, verify=context, trust_env=False, timeout=30)


async def publish(client: httpx.AsyncClient, number: int) -> httpx.Response:
    record = {"key": f"k{number}", "value": number}
    return await client.post("/v1/topics/orders/records", json=record, headers={"Idempotency-Key": f"order-{number}"})


async def until_killed(node: subprocess.Popen[str], client: httpx.AsyncClient) -> dict[int, object]:
    """Publishes until the node dies under it: the answers that came."""
    answers: dict[int, object] = {}

    async def one(numbers: Sequence[int]) -> None:
        for number in numbers:
            try:
                answer = await publish(client, number)
            except httpx.HTTPError:
                return
            assert answer.status_code == 200, answer.text
            answers[number] = answer.json()
            if len(answers) == KEYS // 2:
                node.send_signal(signal.SIGKILL)

    await asyncio.gather(*(one(range(start, KEYS, 8)) for start in range(8)))
    node.communicate(timeout=30)
    return answers


async def test_a_kill_forgets_no_answer_and_stores_nothing_twice(tmp_path: Path) -> None:
    home = tmp_path / "home"
    node, client = start_node(home)
    async with client:
        answers = await until_killed(node, client)
    assert KEYS // 2 <= len(answers) < KEYS
    node, client = start_node(home)
    try:
        async with client:
            again = [await publish(client, number) for number in range(KEYS)]
            replayed = {number for number, answer in enumerate(again) if answer.headers.get("idempotency-replayed") == "true"}
            for number, answer in answers.items():
                assert again[number].json() == answer
            assert replayed >= set(answers)
            topic = (await client.get("/v1/topics/orders")).json()
            assert sum(partition["high_watermark"] for partition in topic["partitions"]) == KEYS
            reused = await client.post(
                "/v1/topics/orders/records",
                content=json.dumps({"value": "other"}),
                headers={"Idempotency-Key": "order-0", "Content-Type": "application/json"},
            )
            assert reused.status_code == 409
    finally:
        node.send_signal(signal.SIGTERM)
        node.communicate(timeout=30)
