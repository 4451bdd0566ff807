"""What users publish is nowhere on disk in clear: not in the data folder, not in keys, not in any log."""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path

import httpx
import pytest
import websockets

from tests.services.node_process import NodeProcess

MARKERS = {
    name: f"planted-{name}-{secrets.token_hex(8)}" for name in ("value", "key", "header", "text", "bytes", "refused", "ws")
}


def forms(marker: str) -> list[bytes]:
    """As it is, and as encodings would leave it."""
    raw = marker.encode()
    return [raw, raw.hex().encode(), base64.b64encode(raw)[:-4], base64.urlsafe_b64encode(raw)[:-4], marker.encode("utf-16-le")]


def scan(folder: Path) -> list[str]:
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        found += [f"{name} in {path.name}" for name, marker in MARKERS.items() for form in forms(marker) if form in data]
    return found


async def publish(node: NodeProcess) -> None:
    headers = {"Authorization": f"Bearer {node.token}"}
    async with httpx.AsyncClient(base_url=node.url, verify=node.tls(), headers=headers, trust_env=False) as http:
        records = [
            {"key": MARKERS["key"], "value": {"v": MARKERS["value"]}, "headers": {"h": MARKERS["header"]}},
            {"key": MARKERS["key"], "text": MARKERS["text"]},
            {"key": MARKERS["key"], "value64": base64.b64encode(MARKERS["bytes"].encode()).decode()},
        ]
        for _ in range(50):
            assert (await http.post("/v1/topics/secret/records", json=records)).status_code == 200
        latest = await http.get(f"/v1/records/secret/{MARKERS['key']}")
        assert latest.content == MARKERS["bytes"].encode()
        refusals = [
            await http.post("/v1/topics/secret/records", json={"value": MARKERS["refused"], MARKERS["refused"]: 1}),
            await http.post(
                "/v1/topics/secret/records", content=MARKERS["refused"], headers={"content-type": "application/json"}
            ),
            await http.get(f"/v1/records/secret/{MARKERS['refused']}"),
            await http.post("/v1/topics/secret/records", json={"id": MARKERS["refused"], "value": 1}),
        ]
        assert [answer.status_code // 100 for answer in refusals] == [4, 4, 4, 4]
    url = f"wss{node.url.removeprefix('https')}/v1/ws"
    async with websockets.connect(url, ssl=node.tls(), additional_headers=headers) as socket:
        await socket.send(json.dumps({"op": "subscribe", "sub": "s", "address": f"secret/{MARKERS['key']}", "from": "earliest"}))
        await socket.send(json.dumps({"op": "publish", "ref": 1, "address": "secret/k", "text": MARKERS["ws"]}))
        await socket.send(MARKERS["refused"])
        while MARKERS["text"] not in str(await socket.recv()):
            pass


@pytest.mark.services
async def test_planted_markers_are_nowhere_on_disk(tmp_path: Path) -> None:
    settings = {"log.journal_file_bytes": 65_536, "logging.level": "debug"}
    node = NodeProcess(tmp_path / "home", **settings)
    with node:
        await publish(node)
        node.kill()
        node.start()
        await publish(node)
        assert node.stop() == 0
    assert (tmp_path / "home" / "data").is_dir()
    assert any((tmp_path / "home" / "data" / "segments").iterdir()) or any((tmp_path / "home" / "data" / "journal").iterdir())
    assert scan(tmp_path) == []


def test_the_scan_finds_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "leak").write_bytes(b"...." + MARKERS["value"].encode() + b"....")
    assert scan(tmp_path) == ["value in leak"]
