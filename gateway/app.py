"""A node: the only place where its parts are made and put together, started, drained and stopped.

Start, each step undone when a later one fails:  log, keys, engine, audit, identity, pipeline, endpoints, listener, admin token.
Stop:  not ready -> accept nobody -> waits end, requests finish -> connections end -> engine -> audit -> log.

The admin token comes last: it is told once, so it is made only when nothing can fail any more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from base64 import urlsafe_b64encode
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from broker.broker import Broker, BrokerOptions
from broker.delivery.consumers import Consumers
from broker.engine.embedded import EmbeddedEngine
from broker.freed_memory import FreedMemory, keep_freed_memory
from broker.groups.groups import Groups
from broker.log.keystore_blob import KeyStoreBlob
from broker.machine import MachineDisk, MachineSeams
from gateway.config import Config
from gateway.endpoints.kafka.connection import KafkaProtocol
from gateway.endpoints.kafka.node import KafkaNode
from gateway.endpoints.kafka.operations import prepare_first, prepare_rest, table
from gateway.endpoints.kafka.options import KafkaOptions
from gateway.endpoints.node import NodeRoutes
from gateway.endpoints.rest import RestApp
from gateway.endpoints.rest_options import RestOptions, SseOptions
from gateway.endpoints.send_buffers import SendBuffers
from gateway.endpoints.users import UserRoutes
from gateway.endpoints.websocket import make_websocket_protocol
from gateway.endpoints.websocket_options import WebSocketOptions
from gateway.listen.server import HttpServer, bind
from gateway.listen.stream import StreamServer
from gateway.listen.tls import CertificateFiles, TlsContexts
from gateway.observe.audit import AuditLog
from gateway.observe.health import Health
from gateway.observe.logs import open_log
from gateway.observe.loop_lag import LoopLag
from gateway.observe.metrics import Metrics
from gateway.pipeline import Pipeline, PipelineOptions
from gateway.settings import QuotasSection, Socket
from security.certificates import CertificatePaths, ensure_development_ca
from security.crypto.key_backups import KeyBackups
from security.crypto.keystore import KeyStore
from security.crypto.kms import KEK_FILE, LocalFileKms
from security.errors import SecurityError
from security.identity.chain import Chain
from security.identity.document_file import StoreDamaged
from security.identity.failed_logins import FailedLoginOptions, FailedLogins
from security.identity.mtls import CertificateProvider
from security.identity.tokens import TokenProvider, TokenStore, bootstrap_admin
from security.identity.users import UserProvider, UserStore
from security.policy.quotas import Quota, Quotas, RateLimit
from security.policy.rbac import PolicyEngine, policy_from_mapping

FOLDER_MODE = 0o700
# Beside connections: files of the log, threads, listeners.
DESCRIPTORS_RESERVED = 1_000
# The development certificate is renewed 30 days ahead; a node may run for longer than it is valid.
RENEWAL_LOOK_S = 6 * 3_600

logger = logging.getLogger(__name__)
Options = TypeVar("Options", bound=msgspec.Struct)


class Node:
    """One node, started once. `addresses` maps protocols to the host and port that are really bound.

    `admin_token` is the text of the first admin token, at the very first start only; else None.
    """

    engine: EmbeddedEngine
    broker: Broker
    groups: Groups
    pipeline: Pipeline
    tokens: TokenStore
    users: UserStore
    audit: AuditLog

    def __init__(self, config: Config) -> None:
        self.config = config
        self.metrics = Metrics()
        self.health = Health()
        self.send_buffers = SendBuffers(config.limits.send_buffers_bytes_max)
        self.metrics.pull("send_buffers", self.send_buffers.stats)
        self.admin_token: str | None = None
        self.addresses: dict[str, tuple[str, int]] = {}
        self._started_at = datetime.now(UTC)
        self._undo = AsyncExitStack()
        self._rest: RestApp | None = None
        self._server: HttpServer | None = None
        self._kafka: StreamServer | None = None
        self._damaged: dict[str, str] = {}  # the stores of identities that cannot be read, with what /readyz says

    def __repr__(self) -> str:
        return f"Node({self.config.node.home!r}, {self.addresses})"

    async def start(self) -> None:
        """Raises what keeps it from starting, by name: `security.errors.KeyProblem`, `CertificateProblem`, `StoreDamaged`,
        `broker.errors.StorageProblem` (a folder in use, damage, foreign keys), `gateway.listen.errors.ListenProblem`, `OSError`.
        """
        async with AsyncExitStack() as undo:
            self._undo = undo
            keep_freed_memory()
            await asyncio.to_thread(self._make_folders)
            undo.callback(open_log(self.config.logging).close)
            _raise_descriptor_limit(self.config.limits.connections_max + DESCRIPTORS_RESERVED)
            seams = await self._open_engine()
            await self._open_identity(seams)
            self._build(seams)
            await self.broker.transactions.start()
            self._undo.push_async_callback(self.broker.transactions.close)
            self._watch()
            await self._listen()
            self.admin_token = await asyncio.to_thread(bootstrap_admin, self.tokens)
            self.health.started()
            logger.info("the node is ready", extra={"listeners": self.addresses, "version": version("sprawl-server")})
            self._undo = undo.pop_all()

    async def stop(self) -> None:
        """The ordered drain; harmless when it is stopped already or never started."""
        self.health.draining()
        if self._server is not None and self._rest is not None:
            logger.info("the node is stopping")
            await self._server.stop_accepting()
            if self._kafka is not None:
                await self._kafka.stop_accepting()
            self._rest.drain()
        await self._undo.aclose()

    # Steps of the start

    def _make_folders(self) -> None:
        node = self.config.node
        files = (node.tokens, node.users, node.audit)
        for folder in (node.home, node.keys, *(str(Path(file).parent) for file in files)):
            Path(folder).mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)

    async def _open_engine(self) -> MachineSeams:
        kms = await asyncio.to_thread(self._open_kms)
        seams = await asyncio.to_thread(MachineSeams, Path(self.config.node.data))
        self._undo.push_async_callback(asyncio.to_thread, seams.executor.close)
        keys = await asyncio.to_thread(MachineDisk, Path(self.config.node.keys))
        backups = KeyBackups(Path(self.config.node.keys))
        self._keystore = KeyStore(KeyStoreBlob(keys), kms, os.urandom, backups)
        self.engine = EmbeddedEngine(seams, self._keystore, self.config.log, self._holder())
        await self.engine.start()
        self._undo.push_async_callback(self.engine.close)
        self.metrics.pull("engine", self.engine.stats)
        self.health.add("disk", self._disk_problem)
        self.health.add("appends", self.engine.append_problem)
        return seams

    def _open_kms(self) -> LocalFileKms:
        """A new key only where there is no data yet: data without its key is a mistake to be named, not one to build on."""
        path = Path(self.config.node.keys) / KEK_FILE
        data = Path(self.config.node.data)
        first_start = not data.exists() or not any(data.iterdir())
        if first_start and not path.exists():
            return LocalFileKms.create(path)
        return LocalFileKms.load(path)

    def _holder(self) -> str:
        began = self._started_at.isoformat(timespec="seconds")
        return f"the node of process {os.getpid()}, started {began} with --home {self.config.node.home}"

    async def _open_identity(self, seams: MachineSeams) -> None:
        clock_ms, config = seams.clock.now_ms, self.config
        self.audit = AuditLog(Path(config.node.audit), clock_ms, lines_max=config.logging.audit_queue_lines_max)
        self._undo.push_async_callback(asyncio.to_thread, self.audit.close)
        self.health.add("audit", lambda: self.audit.failure and f"the audit trail cannot be written: {self.audit.failure}")
        self.tokens = await asyncio.to_thread(
            TokenStore,
            Path(config.node.tokens),
            clock_ms,
            os.urandom,
            tokens_max=config.tokens.tokens_max,
            stale_ms_max=config.tokens.stale_ms_max,
        )
        self.users = await asyncio.to_thread(
            UserStore,
            Path(config.node.users),
            clock_ms,
            os.urandom,
            users_max=config.users.users_max,
            stale_ms_max=config.tokens.stale_ms_max,
        )
        for noun in ("token", "user"):
            self.health.add(f"{noun}s", partial(self._damaged.get, noun))

    def _build(self, seams: MachineSeams) -> None:
        config = self.config
        consumers = Consumers(self.engine, seams.clock, seams.random, config.delivery)
        self._undo.push_async_callback(consumers.close)
        self.metrics.pull("consumers", consumers.stats)
        options = _options(config.broker, BrokerOptions)
        self.broker = Broker(
            self.engine,
            seams.clock,
            options,
            consumers,
            config.shared_scan,
            config.idempotency,
            config.producers,
            config.transactions,
        )
        self.metrics.pull("shared_scan", self.broker.shared_scans.stats)
        self.metrics.pull("transactions", self.broker.transactions.stats)
        self.groups = Groups(self.engine, seams.clock, seams.random, config.groups)
        self.groups.offsets.unstable = self.broker.transactions.unstable
        self.broker.transactions.offset_changes = self.groups.offsets.changes
        self.groups.start()
        self._undo.push_async_callback(self.groups.close)
        self.metrics.pull("groups", self.groups.stats)
        failed_logins = FailedLogins(_options(config.failed_logins, FailedLoginOptions), seams.clock.monotonic_ms)
        self.metrics.pull("failed_logins", failed_logins.stats)
        policy = policy_from_mapping({"roles": config.policy.roles, "bindings": config.policy.bindings})
        self.pipeline = Pipeline(
            self.broker,
            PolicyEngine(policy),
            Chain([TokenProvider(self.tokens), CertificateProvider((), seams.clock.now_ms), UserProvider(self.users)]),
            _quotas(config.quotas),
            self.audit,
            seams.clock,
            self.metrics,
            _options(config.pipeline, PipelineOptions),
            failed_logins,
        )
        about_node = NodeRoutes(self.pipeline, self.metrics, self.health, self._describe)
        self._rest = RestApp(
            self.pipeline,
            self.metrics,
            _options(config.rest, RestOptions),
            _options(config.sse, SseOptions),
            self.tokens,
            [*UserRoutes(self.pipeline, self.users, config.users.hashings_max).operations(), *about_node.operations()],
            self.send_buffers,
        )

    async def _listen(self) -> None:
        await self._listen_http()
        if self.config.listeners.kafka.enabled:
            await self._listen_kafka()
        listeners = [self.config.listeners.http, self.config.listeners.kafka]
        if not self.config.tls.certificate and not all(listener.plain for listener in listeners):
            self._spawn("certificate renewal", self._renew_certificate())

    async def _listen_http(self) -> None:
        config, listener = self.config, self.config.listeners.http
        assert self._rest is not None
        contexts = await self._contexts("http", listener)
        websocket = make_websocket_protocol(
            self.pipeline, self.metrics, _options(config.websocket, WebSocketOptions), self.send_buffers
        )
        self._server = HttpServer(self._rest, websocket, listener, contexts, config.limits, self.metrics, self._rest.direct)
        listening = await asyncio.to_thread(bind, "http", listener)
        self._server.start(listening)
        self._undo.push_async_callback(self._server.drain, config.limits.drain_ms)
        assert self._server.address is not None
        self.addresses["http"] = self._server.address

    async def _listen_kafka(self) -> None:
        config, listener = self.config, self.config.listeners.kafka
        contexts = await self._contexts("kafka", listener)
        node = KafkaNode(
            self.pipeline,
            self.pipeline.clock,
            self.metrics,
            urlsafe_b64encode(self._keystore.cluster_id).rstrip(b"=").decode(),
            _options(config.kafka, KafkaOptions),
            users=self.users,
            groups=self.groups,
            transactions=self.broker.transactions,
            auto_create=config.broker.auto_create,
        )
        self.metrics.pull("kafka_fetch_sessions", node.fetch_sessions.counts)
        node.operations = table(node)
        await asyncio.to_thread(prepare_first)
        self._undo.push_async_callback(_cancelled, asyncio.create_task(prepare_rest(node.operations)))
        limits = config.limits
        self._kafka = StreamServer(
            "kafka",
            partial(KafkaProtocol, node, listener, limits.connections_max, limits.write_stall_ms),
            listener,
            contexts,
            limits,
            self.metrics,
        )
        self._kafka.start(await asyncio.to_thread(bind, "kafka", listener))
        self._undo.push_async_callback(self._kafka.drain, limits.drain_ms)
        assert self._kafka.address is not None
        self.addresses["kafka"] = self._kafka.address

    async def _contexts(self, protocol: str, listener: Socket) -> TlsContexts | None:
        """Of a listener's own, since each may ask for certificates or not; None for a plain one."""
        if listener.plain:
            return None
        contexts = await asyncio.to_thread(self._open_tls, listener)
        self.health.add("certificate" if protocol == "http" else f"certificate of {protocol}", contexts.problem)
        self._spawn(
            "certificate watch" if protocol == "http" else f"certificate watch of {protocol}",
            contexts.watch(self.config.tls.poll_ms),
        )
        return contexts

    def _open_tls(self, listener: Socket) -> TlsContexts:
        """Blocking."""
        given = self.config.tls
        client_ca = Path(given.client_ca) if given.client_ca else None
        if given.certificate:
            files = CertificateFiles(Path(given.certificate), Path(given.key), client_ca)
        else:
            made = self._ensure_certificate()
            files = CertificateFiles(made.server, made.server_key, client_ca or made.ca)
        return TlsContexts(files, listener.tls, lambda: datetime.now(UTC), self._report_certificate)

    def _watch(self) -> None:
        lag = LoopLag(self.metrics.event_loop_lag_seconds.observe)
        lag.start()
        self._undo.callback(lag.stop)
        self._spawn("token reload", self._reload_identities())
        self._spawn("memory watch", self._give_memory_back())

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """In the background until the node stops. Work that ends by itself has failed, and the node is not ready any more."""
        task = asyncio.create_task(work, name=name)
        self._undo.push_async_callback(_cancelled, task)
        self.health.add(name, lambda: f"the {name} has failed" if task.done() else None)

    def _ensure_certificate(self) -> CertificatePaths:
        """Blocking."""
        config = self.config
        hosts = {config.listeners.http.host, config.listeners.kafka.host, config.kafka.advertised_host}
        named = sorted(host for host in hosts if host and not _is_wildcard(host))
        return ensure_development_ca(Path(config.node.certs), named, datetime.now(UTC))

    # While it runs

    async def _reload_identities(self) -> None:
        """What the command line changed takes hold here; damage is told once, and by /readyz as long as it lasts."""
        while True:
            await asyncio.sleep(self.config.tokens.reload_ms / 1_000)
            for noun, store in (("token", self.tokens), ("user", self.users)):
                try:
                    await asyncio.to_thread(store.reload_if_changed)
                except StoreDamaged as damage:
                    if noun not in self._damaged:
                        logger.error("%ss are judged by what was last read: %s", noun, damage)
                    self._damaged[noun] = f"the {noun} file cannot be read"
                else:
                    self._damaged.pop(noun, None)

    async def _give_memory_back(self) -> None:
        freed = FreedMemory(self.config.limits.freed_memory_bytes_max)
        while True:
            await asyncio.sleep(self.config.limits.freed_memory_check_ms / 1_000)
            await asyncio.to_thread(freed.look)

    async def _renew_certificate(self) -> None:
        """The file; the watch puts it into use."""
        while True:
            await asyncio.sleep(RENEWAL_LOOK_S)
            try:
                await asyncio.to_thread(self._ensure_certificate)
            except (SecurityError, OSError) as problem:
                logger.error("the development certificate could not be looked after: %s", problem)

    def _disk_problem(self) -> str | None:
        free, needed = self.engine.stats().free_disk_bytes, self.config.log.journal_file_bytes
        return None if free >= needed else f"the disk has {free} bytes left, the next journal file needs {needed}"

    def _report_certificate(self, outcome: str, expires_at_s: float) -> None:
        self.metrics.certificate_reloads_total.labels(outcome).inc()
        self.metrics.certificate_expiry_seconds.set(expires_at_s)

    def _describe(self) -> dict[str, object]:
        listeners = self.config.listeners
        return {
            "version": version("sprawl-server"),
            "cluster_id": self._keystore.cluster_id.hex(),
            "started_at": self._started_at.isoformat(timespec="seconds"),
            "engine": msgspec.structs.asdict(self.engine.capabilities()),
            "listeners": {
                protocol: {"host": host, "port": port, "tls": _protection(getattr(listeners, protocol))}
                for protocol, (host, port) in self.addresses.items()
            },
        }


def _options(section: msgspec.Struct, kind: type[Options]) -> Options:
    """The options of a part, from the settings of the same names (`tests/gateway/test_config.py` holds them together)."""
    return kind(**msgspec.structs.asdict(section))


def _quotas(section: QuotasSection) -> Quotas:
    limits = {}
    for quota in Quota:
        rate, burst = getattr(section, f"{quota}_per_s"), getattr(section, f"{quota}_burst")
        if rate > 0:
            limits[quota.value] = RateLimit(rate, burst or rate)
    return Quotas(limits)


def _protection(listener: Socket) -> str:
    return "plain" if listener.plain else listener.tls


def _is_wildcard(host: str) -> bool:
    """Every address of the machine: none that a certificate could name."""
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return not host


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _raise_descriptor_limit(wanted: int) -> None:
    """As far as this user may: a connection is a descriptor, and many systems begin with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    if allowed < wanted:
        logger.warning("limits.connections_max needs %d open files, this user may have %d: raise `ulimit -Hn`", wanted, allowed)
