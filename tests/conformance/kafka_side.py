"""One of two brokers that are asked the same: its connections, and by which names its own ids go.

Ids that a broker makes up (members, topics, producers) are compared by the name that the sequence gave them: `bind` learns them
from an answer, `id` puts them into requests, and `plain` puts the names back into answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tests.conformance.kafka_calls import KafkaCalls

MEMBERS = 4
# Between requests of different connections that are to arrive in this order.
ORDER_S = 0.01
RETRY_S = 0.02
RETRIES_MAX = 250


class Ask(NamedTuple):
    """One call. `fields` are made for each side, as ids differ; `binds` names ids in the answer.

    `again` are error codes by which a broker says "in a moment", and `until` what is waited for: both are asked again until then
    (Kafka ends transactions and spreads metadata in the background). `look` says what of the answer is compared. `alone`: the
    calls behind it in its step go out once it is answered."""

    api: str
    version: int
    fields: Callable[[Side], Mapping[str, Any]]
    member: int = 0
    binds: Mapping[str, Callable[[Any], Any]] = {}
    again: frozenset[int] = frozenset()
    forgets: tuple[str, ...] = ()
    until: Callable[[Any], bool] = lambda told: True
    look: Callable[[Any], Any] = lambda told: told
    alone: bool = False


class Side:
    def __init__(self, name: str, bootstrap: str, token: str | None = None) -> None:
        self.name, self._bootstrap, self._token = name, bootstrap, token
        self._connections: list[KafkaCalls] = []
        self._ids: dict[str, Any] = {}
        self._forgotten: dict[str, Any] = {}

    async def open(self) -> dict[str, tuple[int, int]]:
        """New connections and no ids. Returns the versions it serves, by API key."""
        await self.close()
        self._ids, self._forgotten = {}, {}
        self._connections = [
            await KafkaCalls.connect(self._bootstrap, f"member-{member}", self._token) for member in range(MEMBERS)
        ]
        told = await self._connections[0].call("api_versions", 0)
        return {api["api_key"]: (api["min_version"], api["max_version"]) for api in told["api_keys"]}

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()
        self._connections = []

    def id(self, name: str, default: Any = None) -> Any:
        """Also by a name that it has no more."""
        return self._ids.get(name, self._forgotten.get(name, default))

    async def run(self, step: list[Ask]) -> list[dict[str, Any]]:
        """All at once, in this order."""
        if len(step) == 1:
            return [await self._ask(step[0])]
        tasks = []
        for ask in step:
            tasks.append(asyncio.create_task(self._ask(ask)))
            if ask.alone:
                await asyncio.wait(tasks[-1:])
            else:
                await asyncio.sleep(ORDER_S)
        return list(await asyncio.gather(*tasks))

    async def _ask(self, ask: Ask) -> dict[str, Any]:
        connection = self._connections[ask.member]
        for _ in range(RETRIES_MAX):
            answer = await connection.call(ask.api, ask.version, **ask.fields(self))
            if not ask.again & codes(answer) and ask.until(answer):
                break
            await asyncio.sleep(RETRY_S)
        for name, find in ask.binds.items():
            if (found := find(answer)) not in (None, "", -1):
                if self._ids.get(name, found) != found:
                    self._forgotten[former(name)] = self._ids[name]
                self._ids[name] = found
        for name in ask.forgets:
            self._forgotten[name] = self._ids.pop(name, "")
        return answer

    async def admin(self, api: str, version: int, **fields: Any) -> dict[str, Any]:
        """A call that belongs to no sequence."""
        return await self._connections[0].call(api, version, **fields)

    def members(self) -> list[str]:
        """Names of the members that have an id, or had one."""
        return [name for name in {**self._ids, **self._forgotten} if "member:" in name]

    def plain(self, answer: Any) -> Any:
        """With names for ids."""
        ids = {**self._forgotten, **self._ids}
        names = {value: name for name, value in ids.items() if value and isinstance(value, str) and not name.endswith("leader")}
        numbers = {value: name for name, value in self._ids.items() if name.startswith(("producer", "writer"))}
        return _named(answer, names, numbers)


def former(name: str) -> str:
    """By which the id before goes, once there is another."""
    return f"former {name}"


def codes(answer: Any) -> frozenset[int]:
    """Every error code in it."""
    if isinstance(answer, dict):
        own = {value for key, value in answer.items() if key.endswith("error_code") and isinstance(value, int)}
        return frozenset(own.union(*[codes(value) for value in answer.values()]))
    return frozenset().union(*[codes(one) for one in answer]) if isinstance(answer, list) else frozenset()


def _named(value: Any, names: Mapping[Any, str], numbers: Mapping[int, str]) -> Any:
    if isinstance(value, dict):
        return {key: numbers.get(one, one) if key == "producer_id" else _named(one, names, numbers) for key, one in value.items()}
    if isinstance(value, list):
        return [_named(one, names, numbers) for one in value]
    return names.get(value, value) if isinstance(value, str) else value
