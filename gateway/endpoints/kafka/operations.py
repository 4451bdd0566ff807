"""The table of operations: every API that this node serves, in the versions that it serves. ApiVersions tells it as it is.

A row is here once its API does what it says. What needs a service that the node does not have is left out of `table`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from gateway.endpoints.kafka import (
    api_versions,
    client_quotas,
    cluster,
    configs,
    fetch,
    find_coordinator,
    groups,
    groups_admin,
    groups_consumer,
    groups_offsets,
    leader_epoch,
    list_offsets,
    log_dirs,
    metadata,
    produce,
    producer_ids,
    records,
    replicas,
    sasl,
    scram_users,
    topics,
    transactions,
    transactions_admin,
)
from gateway.endpoints.kafka.node import KafkaNode
from gateway.endpoints.kafka.operation import Operation
from gateway.wire.kafka import messages

ALWAYS: tuple[Operation, ...] = (
    *api_versions.OPERATIONS,
    *sasl.OPERATIONS,
    *metadata.OPERATIONS,
    *cluster.OPERATIONS,
    *produce.OPERATIONS,
    *fetch.OPERATIONS,
    *list_offsets.OPERATIONS,
    *leader_epoch.OPERATIONS,
    *topics.OPERATIONS,
    *configs.OPERATIONS,
    *records.OPERATIONS,
    *log_dirs.OPERATIONS,
    *replicas.OPERATIONS,
    *client_quotas.OPERATIONS,
    *producer_ids.OPERATIONS,
    *transactions_admin.OPERATIONS,
)
OF_GROUPS: tuple[Operation, ...] = (
    *find_coordinator.OPERATIONS,
    *groups.OPERATIONS,
    *groups_offsets.OPERATIONS,
    *groups_admin.OPERATIONS,
    *groups_consumer.OPERATIONS,
    *transactions.OPERATIONS,
)
OF_USERS: tuple[Operation, ...] = scram_users.OPERATIONS


# What clients begin with, in the versions of today's: librdkafka 2.16, Java 4.3, kafka-python 3, aiokafka 0.14.
FIRST = ((18, 0), (18, 3), (18, 4), (17, 0), (17, 1), (36, 0), (36, 1), (36, 2), (3, 1), (3, 5), (3, 12), (3, 13))


def prepare_first() -> None:
    """Before the node listens: the schemas take some 100 ms to load, for which everybody else would wait. Blocks."""
    for api, version in FIRST:
        messages.prepare(api, version)


async def prepare_rest(operations: Mapping[int, Operation]) -> None:
    """The newest version of everything else, one after the other, while the node runs."""
    for row in operations.values():
        await asyncio.to_thread(messages.prepare, row.api, row.high)


def table(node: KafkaNode) -> Mapping[int, Operation]:
    """API key -> row, in the order of the keys."""
    rows = [*ALWAYS]
    if node.groups is not None:
        rows += OF_GROUPS
    if node.users is not None:
        rows += OF_USERS
    found = {row.api: row for row in sorted(rows, key=lambda row: row.api)}
    if len(found) < len(rows):
        raise ValueError("two rows of the table are for the same API")
    return found
