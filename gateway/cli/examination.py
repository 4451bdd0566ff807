"""What `sprawl doctor` looks at: each check answers with findings, which say what was seen and what to do about it.

Nothing is changed, save that one file of 4 KiB is written to the data folder, synced and removed, to see how long that takes. The
checks are about this machine and the home on it; a node that runs is asked for its health like by anybody else.
"""

from __future__ import annotations

import os
import resource
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gateway.cli.client import Client
from gateway.cli.connection import resolve_connection
from gateway.cli.display import show_size
from gateway.cli.failures import Failure, Refused, Unreachable, Unusable
from gateway.cli.keys import key_status

if TYPE_CHECKING:
    from gateway.config import Config
    from gateway.settings import Socket

PROBE_BYTES = 4_096
PROBES = 20
SLOW_SYNC_MS = 50.0
"""Consumer SSDs sync in 1 to 5 ms, spinning disks in 10 to 20; each acknowledgement waits for one."""
CERTIFICATE_WARNING_DAYS = 14
FREE_SHARE_WARNING = 0.1
CLOCK_AHEAD_S = 60.0
CONNECTION_DESCRIPTORS = 512  # files, lanes, and the rest of the process
VOLATILE_FILE_SYSTEMS = {"tmpfs": "is gone after a restart of the machine", "ramfs": "is gone after a restart of the machine"}
REMOTE_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs"})


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(msgspec.Struct, frozen=True):
    """`check` names the check, `seen` what was found, `what_to_do` is empty where all is well."""

    check: str
    verdict: Verdict
    seen: str
    what_to_do: str = ""


def examine(config: Config) -> Iterator[Finding]:
    """All findings, one check after the other; a check that fails is a finding itself."""
    for name, check in CHECKS.items():
        try:
            yield from check(config)
        except (OSError, Failure) as error:
            detail = f": {error.detail}" if isinstance(error, Failure) and error.detail else ""
            yield Finding(name, Verdict.PROBLEM, f"{error}{detail}", getattr(error, "what_to_do", "") or "")


def _configuration(config: Config) -> Iterator[Finding]:
    told = sorted(f"{name} ({origin.text})" for name, origin in config.origins.items() if name != "node.home")
    yield Finding("configuration", Verdict.OK, f"{len(told)} settings given" + (": " + ", ".join(told) if told else ""))


def _open_listeners(config: Config) -> dict[str, Socket]:
    """By protocol, those that are served."""
    listeners: dict[str, Socket] = {"http": config.listeners.http}
    if config.listeners.kafka.enabled:
        listeners["kafka"] = config.listeners.kafka
    return listeners


def _listeners(config: Config) -> Iterator[Finding]:
    for protocol, listener in _open_listeners(config).items():
        yield from _listener(protocol, listener)


def _listener(protocol: str, listener: Socket) -> Iterator[Finding]:
    where = f"{protocol} on {listener.host}:{listener.port}"
    if listener.plain:
        yield Finding("listeners", Verdict.WARNING, f"{where} is plain: no TLS", f"set listeners.{protocol}.plain = false")
    if listener.anonymous:
        what = f"set listeners.{protocol}.anonymous = false, and give callers tokens"
        yield Finding("listeners", Verdict.WARNING, f"{where} lets callers in without credentials", what)
    if not listener.plain and not listener.anonymous:
        yield Finding("listeners", Verdict.OK, f"{where}: TLS ({listener.tls}), credentials asked for")


def _node(config: Config) -> Iterator[Finding]:
    """Who holds the port: our node, somebody else, or nobody."""
    from gateway.listen.errors import AddressUnusable, ListenerExposed, PortInUse
    from gateway.listen.server import bind

    home = Path(config.node.home)
    try:
        with Client(resolve_connection(None, None, None, None, None, home)) as client:
            ready = _ready(client)
        yield Finding("node", Verdict.OK, f"runs at {client.connection.url}")
        yield from ready
        return
    except (Unreachable, Unusable) as reason:
        silent = reason
    if isinstance(silent, Unreachable) and "CERTIFICATE" in silent.detail:
        yield Finding("node", Verdict.PROBLEM, f"{silent}: {silent.detail}", silent.what_to_do)
        return
    taken = False
    for protocol, listener in _open_listeners(config).items():
        try:
            bind(protocol, listener).close()
        except PortInUse as problem:
            taken = True
            what = f"stop that process, or set listeners.{protocol}.port"
            yield Finding("ports", Verdict.PROBLEM, f"{problem}, and it is not this node", what)
        except (AddressUnusable, ListenerExposed) as unusable:
            taken = True
            what = f"set listeners.{protocol}.host to an address of this machine"
            yield Finding("ports", Verdict.PROBLEM, str(unusable), what)
    if not taken:
        yield Finding("node", Verdict.OK, "does not run; its ports are free", f"start it with `sprawl serve --home {home}`")


def _ready(client: Client) -> list[Finding]:
    try:
        client.call("GET", "/readyz")
    except Refused as refused:
        problems = refused.problem.get("problems") or {"readyz": refused.title}
        return [Finding("ready", Verdict.PROBLEM, f"{name}: {text}", "see the node's log") for name, text in problems.items()]
    return [Finding("ready", Verdict.OK, "the node says that it is ready")]


def _certificates(config: Config) -> Iterator[Finding]:
    from security.certificates import describe
    from security.errors import CertificateProblem

    if all(listener.plain for listener in _open_listeners(config).values()):
        return
    given = config.tls.certificate
    path = Path(given) if given else Path(config.node.certs) / "server.pem"
    if not given and not path.exists():
        yield Finding("certificate", Verdict.OK, "none yet: the first start makes one")
        return
    try:
        certificate = describe(path)
    except CertificateProblem as problem:
        yield Finding("certificate", Verdict.PROBLEM, str(problem), "give PEM files by tls.certificate and tls.key")
        return
    left = certificate.not_after - datetime.now(UTC)
    seen = f"{path} for {certificate.subject}, {left.days} days left"
    if left.total_seconds() <= 0:
        yield Finding("certificate", Verdict.PROBLEM, f"{path} has expired on {certificate.not_after:%Y-%m-%d}", _renew(given))
    elif left.days < CERTIFICATE_WARNING_DAYS:
        yield Finding("certificate", Verdict.WARNING, seen, _renew(given))
    else:
        yield Finding("certificate", Verdict.OK, seen)
    if not given:
        what = "give tls.certificate and tls.key of your organisation's CA before others use this node"
        yield Finding("certificate", Verdict.WARNING, "it is of the development CA, which cannot revoke", what)
    key = Path(config.tls.key) if given else Path(config.node.certs) / "server-key.pem"
    yield from _private(key, "certificate")


def _renew(given: str) -> str:
    return "put the renewed files in its place; a running node takes them at once" if given else "start the node: it renews it"


def _private(path: Path, check: str) -> Iterator[Finding]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        what = f"run `chmod 600 {path}`, and replace what was in it if others may have read it"
        yield Finding(check, Verdict.PROBLEM, f"{path} may be used by others than its owner (mode {mode:04o})", what)


def _keys(config: Config) -> Iterator[Finding]:
    if not Path(config.node.data).exists():
        yield Finding("keys", Verdict.OK, "none yet: the first start makes them")
        return
    status = key_status(config.node)
    yield Finding("keys", Verdict.OK, f"key {status['active_key']} opens {status['topics']} topics")
    yield from _private(Path(config.node.keys), "keys")
    if status["same_disk_as_data"]:
        what = "set node.keys to a folder on other media, and back keys up apart from data"
        yield Finding("keys", Verdict.WARNING, "keys lie on the same disk as the data: who takes one takes both", what)


def _disk(config: Config) -> Iterator[Finding]:
    data = Path(config.node.data)
    folder = next(folder for folder in (data, *data.absolute().parents) if folder.exists())
    space = os.statvfs(folder)
    free, size = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    seen = f"{show_size(free)} of {show_size(size)} free in {folder}"
    if free < 2 * config.log.journal_file_bytes:
        yield Finding("disk", Verdict.PROBLEM, seen, "make room: publishes are refused before the disk is full")
    elif free < FREE_SHARE_WARNING * size:
        yield Finding("disk", Verdict.WARNING, seen, "make room, or set retention.ms or retention.bytes of topics")
    else:
        yield Finding("disk", Verdict.OK, seen)
    if space.f_files and space.f_favail < 1_000:
        yield Finding("disk", Verdict.PROBLEM, f"{space.f_favail} inodes left in {folder}", "remove files of others there")
    kind = file_system(folder)
    if kind in VOLATILE_FILE_SYSTEMS:
        what = "set node.data to a folder on a disk"
        yield Finding("disk", Verdict.WARNING, f"{folder} is {kind}, what it holds {VOLATILE_FILE_SYSTEMS[kind]}", what)
    if kind in REMOTE_FILE_SYSTEMS:
        yield Finding("disk", Verdict.WARNING, f"{folder} is {kind}: syncs and locks depend on its server", "use a local disk")
    if data.exists():
        yield from _sync_time(data, config)


def _sync_time(folder: Path, config: Config) -> Iterator[Finding]:
    taken = sorted(sync_times_ms(folder))
    median = taken[len(taken) // 2]
    seen = f"write and sync of 4 KiB: median {median:.1f} ms, longest {taken[-1]:.1f} ms"
    if median > SLOW_SYNC_MS and config.log.durability == "fsync":
        yield Finding("disk", Verdict.WARNING, seen, "every acknowledgement waits for a sync: use a faster disk for node.data")
    else:
        yield Finding("disk", Verdict.OK, seen)


def sync_times_ms(folder: Path) -> list[float]:
    path = folder / f".doctor-{os.getpid()}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        taken = []
        for _ in range(PROBES):
            began = time.perf_counter()
            os.write(descriptor, bytes(PROBE_BYTES))
            os.fdatasync(descriptor)
            taken.append((time.perf_counter() - began) * 1_000)
        return taken
    finally:
        os.close(descriptor)
        path.unlink()


def file_system(folder: Path) -> str:
    """The type of the mount that holds a folder, as the kernel names it; empty where it does not say."""
    best, kind = "", ""
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, mount, found, *_ = line.split(" ")
            mount = mount.replace("\\040", " ")
            if len(mount) >= len(best) and folder.resolve().is_relative_to(mount):
                best, kind = mount, found
    return kind


def _clock(config: Config) -> Iterator[Finding]:
    """Offsets never depend on it; expiry of tokens and certificates, retention and timestamps do."""
    newest = max((path.stat().st_mtime for path in Path(config.node.data).glob("**/*") if path.is_file()), default=0.0)
    ahead_s = newest - time.time()
    if ahead_s > CLOCK_AHEAD_S:
        what = "set the clock (NTP); until then records get times of the past"
        yield Finding("clock", Verdict.PROBLEM, f"the data's newest file is {ahead_s:.0f} s in the future", what)
    elif (synchronised := clock_synchronised()) is False:
        yield Finding("clock", Verdict.WARNING, "the kernel's clock is not synchronised", "run an NTP client on this machine")
    else:
        told = "" if synchronised is None else ", synchronised as the kernel says"
        yield Finding("clock", Verdict.OK, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z{told}")


TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


def clock_synchronised() -> bool | None:
    """What adjtimex(2) answers; None where it cannot be asked."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "adjtimex"):
        return None
    state = library.adjtimex(ctypes.create_string_buffer(512))  # struct timex, 208 bytes on 64 bits; all zero only reads
    return None if state < 0 else state != TIME_ERROR


def _limits(config: Config) -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = config.limits.connections_max + CONNECTION_DESCRIPTORS
    if hard != resource.RLIM_INFINITY and hard < needed:
        what = "raise `ulimit -Hn` for this user, or lower limits.connections_max"
        yield Finding("limits", Verdict.WARNING, f"this user may open {hard} files, {needed} may be needed", what)
    else:
        yield Finding("limits", Verdict.OK, f"{needed} open files are allowed")


def _secrets(config: Config) -> Iterator[Finding]:
    """Files that hold a token in clear, and the folder around everything."""
    home = Path(config.node.home)
    if not home.exists():
        yield Finding("home", Verdict.OK, f"{home} is not there yet: the first start makes it")
        return
    yield from _private(home, "home")
    profile = home / "cli.json"
    if profile.exists():
        yield from _private(profile, "home")
        what = "once others have tokens: `sprawl tokens revoke` it, and delete the files that hold it (SECURITY.md names them)"
        yield Finding("home", Verdict.WARNING, f"{profile} holds the admin token of the first start in clear", what)


def _machine(config: Config) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    yield Finding("machine", Verdict.OK, f"{cores} cores, {ssl.OPENSSL_VERSION}")


CHECKS: dict[str, Callable[[Config], Iterator[Finding]]] = {
    "configuration": _configuration,
    "machine": _machine,
    "listeners": _listeners,
    "node": _node,
    "certificate": _certificates,
    "keys": _keys,
    "disk": _disk,
    "clock": _clock,
    "limits": _limits,
    "home": _secrets,
}
