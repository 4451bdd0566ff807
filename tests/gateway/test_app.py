"""A whole node, on a free port, over TLS: its first life, its second, and what keeps it from starting."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect

from broker.errors import FolderInUse
from gateway.app import Node
from gateway.config import Config, load
from gateway.listen.errors import PortInUse
from security.certificates import CertificatePaths, issue_client
from security.errors import CertificateProblem, KeyFilePermissions, KeyMissing, KeyWrong
from security.identity.tokens import TokenStore

RSS_BYTES_MAX = 120_000_000


def config(home: Path, **flags: object) -> Config:
    """`limits__drain_ms=5` is limits.drain_ms."""
    named = {name.replace("__", "."): value for name, value in flags.items()}
    settings = {"node.home": str(home), "listeners.http.port": 0, "listeners.kafka.port": 0, "logging.level": "warning"}
    return load(None, {}, settings | named)


@asynccontextmanager
async def running(home: Path, **flags: object) -> AsyncIterator[Caller]:
    node = Node(config(home, **flags))
    await node.start()
    try:
        yield Caller(node)
    finally:
        await node.stop()


class Answer:
    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        lines = head.decode("ascii").split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}

    def json(self) -> Any:
        return json.loads(self.body)


class Caller:
    """One request a connection, over TLS that trusts the node's own CA."""

    def __init__(self, node: Node) -> None:
        self.node = node
        certs = Path(node.config.node.certs)
        self.paths = CertificatePaths(certs / "ca.pem", certs / "ca-key.pem", certs / "server.pem", certs / "server-key.pem")
        self.trust = ssl.create_default_context()
        if not node.config.listeners.http.plain:
            self.trust.load_verify_locations(self.paths.ca)
        self.token = node.admin_token

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.node.addresses["http"]
        return await asyncio.open_connection(host, port, ssl=self.trust, server_hostname="localhost")

    def request(self, method: str, path: str, document: object = None, token: str | None = None) -> bytes:
        body = b"" if document is None else json.dumps(document).encode()
        lines = [f"{method} {path} HTTP/1.1", "host: localhost", "connection: close", f"content-length: {len(body)}"]
        lines += ["content-type: application/json"] if body else []
        lines += [f"authorization: Bearer {token}"] if token else []
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode() + body

    async def ask(self, method: str, path: str, document: object = None, *, token: str | None = None) -> Answer:
        reader, writer = await self.open()
        writer.write(self.request(method, path, document, token))
        answer = Answer(await reader.read())
        writer.close()
        return answer

    async def admin(self, method: str, path: str, document: object = None) -> Answer:
        return await self.ask(method, path, document, token=self.token)

    def websocket(self) -> connect:
        host, port = self.node.addresses["http"]
        headers = {"authorization": f"Bearer {self.token}"}
        return connect(f"wss://localhost:{port}/v1/ws", ssl=self.trust, additional_headers=headers, host=host)


async def until(condition: Callable[[], Any]) -> None:
    while not condition():  # noqa: ASYNC110  # of a world that sets no event
        await asyncio.sleep(0.01)


class TestTheFirstLife:
    async def test_what_is_open_and_what_needs_a_role(self, tmp_path: Path) -> None:
        async with running(tmp_path / "home") as caller:
            assert (await caller.ask("GET", "/livez")).json() == {"status": "alive"}
            assert (await caller.ask("GET", "/readyz")).json() == {"status": "ready"}
            for path in ("/metrics", "/v1/node"):
                assert (await caller.ask("GET", path)).status == 401
            made = await caller.admin("POST", "/v1/tokens", {"name": "weak", "roles": ["publisher"]})
            weak = made.json()["token"]
            for path in ("/metrics", "/v1/node"):
                assert (await caller.ask("GET", path, token=weak)).status == 403
            metrics = await caller.admin("GET", "/metrics")
            assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert re.search(rb"^sprawl_engine_topics 0\.0$", metrics.body, re.MULTILINE)
            assert re.search(rb'^sprawl_requests_total\{.*outcome="access-denied".*\} 2\.0$', metrics.body, re.MULTILINE)
            described = (await caller.admin("GET", "/v1/node")).json()
            assert described["listeners"]["http"]["port"] == caller.node.addresses["http"][1]
            assert described["engine"]["durability"] == "fsync"
            assert re.fullmatch(r"[0-9a-f]{32}", described["cluster_id"])

    async def test_published_over_one_protocol_read_over_another(self, tmp_path: Path) -> None:
        async with running(tmp_path / "home") as caller, caller.websocket() as websocket:
            await caller.admin("POST", "/v1/topics", {"name": "orders", "partitions": 3})
            await said(websocket, "ready")
            await websocket.send(json.dumps({"op": "subscribe", "sub": "s", "address": "orders", "from": "earliest"}))
            receipt = (await caller.admin("POST", "/v1/records/orders/eu/7", {"value": {"amount": 12}})).json()["records"][0]
            (record,) = (await said(websocket, "records"))["records"]
            assert (record["id"], record["key"], record["value"]) == (receipt["id"], "eu/7", {"amount": 12})

    async def test_everything_is_private(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        before = os.umask(0)
        try:
            async with running(home) as caller:
                await caller.admin("POST", "/v1/records/orders/eu/7", {"value": 1})
        finally:
            os.umask(before)
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        folders = [path for path in home.iterdir() if path.is_dir()]
        assert {path.name for path in folders} == {"data", "keys", "certs"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
        secrets = [home / "tokens.json", home / "audit.jsonl", *(home / "keys").iterdir(), *(home / "certs").glob("*-key.pem")]
        assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}

    async def test_the_token_is_on_no_disk_and_the_audit_trail_tells_who_did_what(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        async with running(home, **{"logging.file": str(tmp_path / "node.log"), "logging.level": "debug"}) as caller:
            token = caller.token
            assert token is not None
            assert token not in repr(caller.node)
            await caller.admin("POST", "/v1/records/orders/eu/7", {"value": 1})
            await caller.ask(
                "POST", "/v1/records/orders/eu/7", {"value": 1}, token=token[:-1] + ("A" if token[-1] != "A" else "B")
            )
        secret = token.split("_", 2)[2].encode()  # base64url has underscores of its own
        for path in (tmp_path / "node.log", *home.rglob("*")):
            assert not path.is_file() or secret[:12] not in path.read_bytes(), path
        trail = [json.loads(line) for line in (home / "audit.jsonl").read_text().splitlines()]
        assert [(line["action"], line["resource"], line["outcome"]) for line in trail if line["event"] == "access"] == [
            ("publish", "orders", "allowed")
        ]
        assert [line["outcome"] for line in trail if line["event"] == "identity"] == ["refused"]


async def said(websocket: ClientConnection, op: str) -> Any:
    """The next message of this kind."""
    while True:
        message = json.loads(await websocket.recv())
        if message["op"] == op:
            return message
        assert message["op"] in ("subscribed", "ready"), message


class TestTheSecondLife:
    async def test_same_data_same_ca_and_no_second_token(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        async with running(home) as caller:
            token, ca = caller.token, caller.paths.ca.read_bytes()
            cluster = (await caller.admin("GET", "/v1/node")).json()["cluster_id"]
            await caller.admin("POST", "/v1/records/orders/eu/7", {"value": {"amount": 12}})
        async with running(home) as caller:
            assert caller.node.admin_token is None
            assert caller.paths.ca.read_bytes() == ca
            caller.token = token
            assert (await caller.admin("GET", "/v1/node")).json()["cluster_id"] == cluster
            assert (await caller.admin("GET", "/v1/records/orders/eu/7")).json() == {"amount": 12}

    async def test_a_start_that_failed_late_leaves_the_token_for_the_next(self, tmp_path: Path) -> None:
        """It is shown once: so it may not be made by a start that nobody sees the end of."""
        home = tmp_path / "home"
        with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(PortInUse):
            await Node(config(home, listeners__http__port=other.getsockname()[1])).start()
        async with running(home) as caller:
            assert (await caller.admin("GET", "/v1/node")).status == 200


class TestWhatKeepsItFromStarting:
    async def test_another_node_in_its_folder_is_named(self, tmp_path: Path) -> None:
        async with running(tmp_path / "home") as caller:
            with pytest.raises(FolderInUse, match=rf"in use by the node of process {os.getpid()}, started 20.*--home"):
                await Node(config(tmp_path / "home")).start()
            assert (await caller.admin("GET", "/v1/node")).status == 200

    async def test_a_port_in_use_is_named_and_the_folder_is_free_again(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(PortInUse, match=f"port {port} on 127.0.0.1 is in use"):
                await Node(config(tmp_path / "home", listeners__http__port=port)).start()
        async with running(tmp_path / "home") as caller:
            assert (await caller.ask("GET", "/readyz")).status == 200

    async def test_data_without_its_key(self, tmp_path: Path) -> None:
        home = await lived(tmp_path)
        shutil.rmtree(home / "keys")
        with pytest.raises(KeyMissing, match=r"kek\.json does not hold any key"):
            await Node(config(home)).start()
        assert list((home / "keys").iterdir()) == []  # and none is made in its place

    async def test_data_under_another_key(self, tmp_path: Path) -> None:
        home, other = await lived(tmp_path), await lived(tmp_path, "other")
        shutil.copy2(other / "keys" / "kek.json", home / "keys" / "kek.json")
        with pytest.raises((KeyMissing, KeyWrong), match="kek-"):
            await Node(config(home)).start()

    async def test_a_key_that_others_may_read(self, tmp_path: Path) -> None:
        home = await lived(tmp_path)
        (home / "keys" / "kek.json").chmod(0o640)
        with pytest.raises(KeyFilePermissions, match="has mode 0640"):
            await Node(config(home)).start()

    async def test_a_certificate_without_its_key(self, tmp_path: Path) -> None:
        home = await lived(tmp_path)
        (home / "certs" / "server-key.pem").unlink()
        with pytest.raises(CertificateProblem, match=r"server-key\.pem cannot be used, it is missing"):
            await Node(config(home)).start()

    async def test_a_home_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "home").write_text("")
        with pytest.raises(FileExistsError, match="home"):
            await Node(config(tmp_path / "home")).start()


async def lived(tmp_path: Path, name: str = "home") -> Path:
    """A home whose node has run and ended."""
    async with running(tmp_path / name) as caller:
        await caller.admin("POST", "/v1/records/orders/eu/7", {"value": 1})
    return tmp_path / name


class TestWhileItRuns:
    async def test_a_revocation_by_another_process_takes_hold(self, tmp_path: Path) -> None:
        async with running(tmp_path / "home", tokens__reload_ms=20) as caller:
            made = (await caller.admin("POST", "/v1/tokens", {"name": "t", "roles": ["admin"]})).json()
            assert (await caller.ask("GET", "/v1/node", token=made["token"])).status == 200
            command_line = TokenStore(Path(caller.node.config.node.tokens), lambda: 1, os.urandom)
            await asyncio.to_thread(command_line.revoke, made["id"])
            await until(lambda: caller.node.tokens.list()[-1].revoked_at_ms is not None)
            refused = await caller.ask("GET", "/v1/node", token=made["token"])
            assert (refused.status, refused.json()["type"]) == (401, "/problems/token-revoked")

    async def test_a_damaged_token_file_makes_it_unready_and_mending_it_ready(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with running(tmp_path / "home", tokens__reload_ms=20) as caller:
            path = Path(caller.node.config.node.tokens)
            whole = spoilt(path)
            await until(lambda: not caller.node.health.ready)
            answer = await caller.ask("GET", "/readyz")
            assert (answer.status, answer.json()["problems"]) == (503, {"tokens": "the token file cannot be read"})
            assert (await caller.admin("GET", "/v1/node")).status == 200  # as last read
            assert caplog.text.count("tokens are judged by what was last read") == 1
            mended(path, whole)
            await until(lambda: caller.node.health.ready)

    async def test_a_nearly_full_disk_makes_it_unready(self, tmp_path: Path) -> None:
        async with running(tmp_path / "home", log__journal_file_bytes=2**62) as caller:
            answer = await caller.ask("GET", "/readyz")
            assert (answer.status, list(answer.json()["problems"])) == (503, ["disk"])

    async def test_client_certificates_are_principals(self, tmp_path: Path) -> None:
        binding = '[{"role": "publisher", "principals": ["cert:device-*"]}]'
        async with running(tmp_path / "home", listeners__http__tls="mutual-optional", policy__bindings=binding) as caller:
            certificate, key = issue_client(caller.paths, "device-7", 1, datetime.now(UTC))
            (tmp_path / "device.pem").write_bytes(certificate + key)
            caller.trust.load_cert_chain(tmp_path / "device.pem")
            assert (await caller.ask("GET", "/v1/whoami")).json()["principal"] == "cert:device-7"
            await caller.admin("POST", "/v1/topics", {"name": "orders", "partitions": 1})
            assert (await caller.ask("POST", "/v1/records/orders/eu/7", {"value": 1})).status == 200
            assert (await caller.ask("GET", "/v1/records/orders/eu/7")).status == 403

    async def test_quotas_hold(self, tmp_path: Path) -> None:
        async with running(tmp_path / "home", quotas__requests_per_s=0.001, quotas__requests_burst=2) as caller:
            statuses = [(await caller.admin("GET", "/v1/node")).status for _ in range(3)]
            assert statuses == [200, 200, 429]

    async def test_a_plain_anonymous_listener_lets_in_a_principal_without_rights(self, tmp_path: Path) -> None:
        async with running(tmp_path / "home", listeners__http__plain=True, listeners__http__anonymous=True) as caller:
            host, port = caller.node.addresses["http"]
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(caller.request("GET", "/v1/topics/orders"))
            refused = Answer(await reader.read())
            assert (refused.status, refused.json()["principal"]) == (403, "anonymous")
            writer.close()


def spoilt(path: Path) -> bytes:
    """Cuts the end off; returns what it was."""
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    return whole


def mended(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)


class TestTheEnd:
    async def test_waits_end_requests_finish_and_websockets_are_told(self, tmp_path: Path) -> None:
        async with running(tmp_path / "home") as caller:
            await caller.admin("POST", "/v1/topics", {"name": "orders", "partitions": 1})
            poll = "/v1/topics/orders/partitions/0/records?offset=latest&wait_ms=60000"
            polling = asyncio.create_task(caller.admin("GET", poll))
            streaming = asyncio.create_task(caller.admin("GET", "/v1/topics/orders/events"))
            reader, writer = await caller.open()
            document = {"value": "x" * 1_000}
            request = caller.request("POST", "/v1/records/orders/eu/7", document, caller.token)
            writer.write(request[:-10])
            async with caller.websocket() as websocket:
                await said(websocket, "ready")
                await until(lambda: open_http(caller.node) == 3)
                stopping = asyncio.create_task(caller.node.stop())
                await websocket.wait_closed()
                assert websocket.close_code == 1001
            assert (await polling).status in (200, 503)
            assert (await streaming).status == 200
            assert not stopping.done()
            writer.write(request[-10:])
            assert Answer(await reader.read()).status == 200
            writer.close()
            await stopping
            assert caller.node.health.problems()["drain"] == "the node is stopping"
            with pytest.raises(ConnectionRefusedError):
                await caller.open()
        async with running(tmp_path / "home") as again:
            again.token = caller.token
            assert (await again.admin("GET", "/v1/records/orders/eu/7")).json() == "x" * 1_000

    async def test_what_does_not_end_is_cut_after_drain_ms(self, tmp_path: Path) -> None:
        async with running(tmp_path / "home", limits__drain_ms=50) as caller:
            reader, writer = await caller.open()
            request = caller.request("POST", "/v1/records/orders/eu/7", {"value": 1}, caller.token)
            writer.write(request[:-1])
            await until(lambda: open_http(caller.node) == 1)
            await caller.node.stop()
            assert b"200 OK" not in await ended(reader)
            writer.close()

    async def test_stopping_twice_or_never_started_is_harmless(self, tmp_path: Path) -> None:
        async with running(tmp_path / "home") as caller:
            await caller.node.stop()
        await Node(config(tmp_path / "other")).stop()


def open_http(node: Node) -> float:
    return node.metrics.registry.get_sample_value("sprawl_connections", {"protocol": "http"}) or 0


async def ended(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


@pytest.mark.services
def test_a_node_of_its_own_process_is_small_and_ends_in_order(tmp_path: Path) -> None:
    """As `sprawl serve` runs it: on uvloop, signals and all. The bound is the issue's; what it really takes is printed."""
    command = [sys.executable, "-m", "gateway.cli.main", "serve", "--home", str(tmp_path / "home"), "--json"]
    environ = {**os.environ, "SPRAWL_LISTENERS_HTTP_PORT": "0", "SPRAWL_LISTENERS_KAFKA_PORT": "0"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ) as process:
        assert process.stdout is not None
        try:
            facts = json.loads(process.stdout.readline())
            assert facts["first_start"] is True
            rss_bytes = psutil.Process(process.pid).memory_info().rss
            print(f"RSS of an idle node: {rss_bytes / 1e6:.1f} MB")
            assert rss_bytes < RSS_BYTES_MAX
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0
    messages = [json.loads(line)["message"] for line in log.decode().splitlines()]
    assert messages == ["the node is ready", "the node is stopping"]


def test_the_server_imports_nothing_of_the_command_line() -> None:
    """Lean by construction: what only clients and tests need stays out of the process.

    (kio takes hypothesis where it finds it; nodes are installed without.)
    """
    unwanted = {"httpx", "rich", "starlette.testclient", "pytest"}
    code = f"import sys, gateway.app; print(sorted({unwanted} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
