"""Failed log-ins slow down the next ones, over all connections and protocols, and lock nobody else out.

    one name from one address    after `failures_free` of them the next ones take turns, `delay_ms` apart, twice as far with each
                                 failure and at most `delay_ms_max`; who would wait for more than `wait_ms_max` is not heard
    any names from one address   after `address_failures_free` a name that has not logged in from there waits, by the same steps
    one name, any addresses      after `name_failures_free` its refusals are answered later, by the same steps

A wait comes before the credential is looked at, and is the same for right and wrong ones: trying on many connections at once
gains nothing. Nobody waits for what others do at other addresses: who has the right credential there is not refused, so is never
answered late. Who shares the address of a guesser waits at most `delay_ms_max`, and not at all if they logged in before.

A token is told apart by its own text, which nobody guesses: whoever sends wrong ones is never in the way of the right one.
An address of IPv6 is its first 64 bits: one customer has all of the rest (RFC 6177).
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Generic, TypeVar

import msgspec

from security.errors import LoginsThrottled
from security.identity.chain import BearerToken, Credential
from security.identity.scram import ScramProof

_DOUBLINGS_MAX = 30
_REFRESHES = 8  # within a window

Key = TypeVar("Key", bound=Hashable)


class FailedLoginOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much guessing is borne."""

    failures_free: int = 10
    address_failures_free: int = 100
    name_failures_free: int = 100
    delay_ms: int = 100
    delay_ms_max: int = 1_000
    wait_ms_max: int = 4_000
    window_ms: int = 600_000
    entries_max: int = 10_000


class FailedLoginStats(msgspec.Struct, frozen=True):
    """What is remembered now."""

    addresses: int
    names: int
    pairs: int
    known: int


class _Failures:
    """`turn_ms` is when the next attempt may be judged; `seen_ms` when it was last added to; `told` whether one was refused."""

    __slots__ = ("count", "seen_ms", "told", "turn_ms")

    def __init__(self) -> None:
        self.count = self.seen_ms = self.turn_ms = 0
        self.told = False


class _Recent(Generic[Key]):
    """What was seen within the window, the oldest forgotten first where there is no room."""

    def __init__(self, options: FailedLoginOptions) -> None:
        self._window_ms, self._entries_max = options.window_ms, options.entries_max
        self._entries: OrderedDict[Key, _Failures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Key, now_ms: int) -> _Failures | None:
        found = self._entries.get(key)
        return None if found is None or now_ms - found.seen_ms > self._window_ms else found

    def seen(self, key: Key, now_ms: int) -> _Failures:
        """Its entry, begun anew when it is too old, as the newest."""
        found = self.find(key, now_ms)
        if found is None:
            self._entries.pop(key, None)
            self._make_room(now_ms)
            found = self._entries[key] = _Failures()
        else:
            self._entries.move_to_end(key)
        found.seen_ms = now_ms
        return found

    def forget(self, key: Key) -> None:
        self._entries.pop(key, None)

    def _make_room(self, now_ms: int) -> None:
        """Two of the old ones for each new one: so they are gone some time, and nobody waits for all of them."""
        for _ in range(2):
            if not self._entries:
                return
            oldest = next(iter(self._entries.values()))
            if len(self._entries) < self._entries_max and now_ms - oldest.seen_ms <= self._window_ms:
                return
            self._entries.popitem(last=False)


class FailedLogins:
    """Of one node. `clock_ms` never goes back. An attempt: `wait_ms`, that wait, the judgement, then `succeeded` or `failed`.

    Between the judgement and its `failed` nothing may happen to other attempts: a provider that asks others over the network
    bounds itself how many it judges at once.
    """

    def __init__(self, options: FailedLoginOptions, clock_ms: Callable[[], int]) -> None:
        self.options = options
        self._clock_ms = clock_ms
        self._pairs: _Recent[tuple[str, str]] = _Recent(options)
        self._addresses: _Recent[str] = _Recent(options)
        self._names: _Recent[str] = _Recent(options)
        self._known: _Recent[tuple[str, str]] = _Recent(options)

    def wait_ms(self, address: str, name: str) -> int:
        """How long before this attempt may be judged; its turn is taken. Raises LoginsThrottled where that is too long."""
        if not self._pairs:
            return 0  # nobody has failed, or not without succeeding since
        now, pair = self._clock_ms(), (address, name)
        failures = self._pairs.find(pair, now)
        if failures is not None and failures.count >= self.options.failures_free:
            wait = max(0, failures.turn_ms - now)
            if wait > self.options.wait_ms_max:
                told, failures.told = failures.told, True
                raise LoginsThrottled(wait, told)
            failures.turn_ms = now + wait + self._delay_ms(failures.count + 1, self.options.failures_free)
            return wait
        failures = self._addresses.find(address, now)
        if failures is None or self._known.find(pair, now) is not None:
            return 0
        return self._delay_ms(failures.count, self.options.address_failures_free)

    def succeeded(self, address: str, name: str) -> None:
        pair, now = (address, name), self._clock_ms()
        known = self._known.find(pair, now)
        if known is None or now - known.seen_ms > self.options.window_ms // _REFRESHES:  # each request over HTTP comes here
            self._known.seen(pair, now)
        if self._pairs:
            self._pairs.forget(pair)

    def failed(self, address: str, name: str, *, guessed: bool) -> int:
        """How long its answer has to wait. What was not `guessed`, as an expired token, does not count against the address."""
        now, options = self._clock_ms(), self.options
        pair = self._pairs.seen((address, name), now)
        pair.count += 1
        pair.turn_ms = max(pair.turn_ms, now + self._delay_ms(pair.count, options.failures_free))
        if guessed:
            self._addresses.seen(address, now).count += 1
        of_name = self._names.seen(name, now)
        of_name.count += 1
        return self._delay_ms(of_name.count, options.name_failures_free)

    def stats(self) -> FailedLoginStats:
        return FailedLoginStats(len(self._addresses), len(self._names), len(self._pairs), len(self._known))

    def _delay_ms(self, count: int, free: int) -> int:
        """After so many failures, of which some are free."""
        if count < free:
            return 0
        return min(self.options.delay_ms << min(count - free, _DOUBLINGS_MAX), self.options.delay_ms_max)


def claimed_name(credential: Credential) -> str | None:
    """Whose the credential is said to be; None for what nobody can guess at. Of a token it gives nothing away."""
    if isinstance(credential, ScramProof):
        return f"user:{credential.name}"
    if isinstance(credential, BearerToken):
        return hashlib.blake2b(credential.text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return None


def address_of(peer: str) -> str:
    """Of "ip:port", with or without brackets."""
    host = peer.rpartition(":")[0]
    return _network(host.strip("[]")) if ":" in host else host


@lru_cache(maxsize=1_024)
def _network(host: str) -> str:
    try:
        address = IPv6Address(host)
    except ValueError:
        return host
    mapped = address.ipv4_mapped
    return address.packed[:8].hex() if mapped is None else str(mapped)
