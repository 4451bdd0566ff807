"""DescribeConfigs 1-4 (KIP-226 sources and synonyms, KIP-569 types and documentation), AlterConfigs 0-2 (KIP-133),
IncrementalAlterConfigs 0-1 (KIP-339), ListConfigResources 0-1 (KIP-714, KIP-1142).

Topics' configs are described and altered. The broker's are described only: the configuration file says what the node is. Other
resources (loggers, client metrics, groups) have no configs here and are refused as INVALID_REQUEST.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any

from broker.topics.configs import RULES
from gateway.endpoints.kafka.broker_configs import broker_configs, own_configs
from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.described_config import ConfigKind, Described
from gateway.endpoints.kafka.operation import Operation
from gateway.endpoints.kafka.refusal import REFUSED, Refusal, told
from gateway.endpoints.kafka.topic_configs import FIXED, kind_of, listed, settable, topic_configs
from gateway.endpoints.kafka.turns import in_turns
from gateway.wire.kafka.error_codes import ErrorCode
from security.policy.model import Action


class ResourceType(IntEnum):
    """org.apache.kafka.common.config.ConfigResource.Type, as far as they have configs here."""

    TOPIC = 2
    BROKER = 4


KAFKAS_RESOURCE_TYPES = frozenset({2, 4, 8, 16, 32})
"""Those that Kafka lists beside: loggers of brokers, client metrics, groups."""


class Change(IntEnum):
    """org.apache.kafka.clients.admin.AlterConfigOp.OpType."""

    SET = 0
    DELETE = 1
    APPEND = 2
    SUBTRACT = 3


async def describe_configs(call: Call, request: Any) -> dict[str, Any]:
    results = []
    async for asked in in_turns({(one.resource_type, one.resource_name): one for one in request.resources}.values()):
        result: dict[str, Any] = {
            "error_code": 0,
            "error_message": None,
            "resource_type": asked.resource_type,
            "resource_name": asked.resource_name,
            "configs": [],
        }
        try:
            synonyms, documentation = request.include_synonyms, getattr(request, "include_documentation", False)
            keys = frozenset(asked.configuration_keys or ())
            result["configs"] = [
                config.wholly(synonyms=synonyms, documentation=documentation)
                for config in _described(call, asked)
                if not keys or config.name in keys
            ]
        except REFUSED as error:
            result["error_code"], result["error_message"] = told(error)
        results.append(result)
    return {"results": results}


def _described(call: Call, asked: Any) -> Iterable[Described]:
    pipeline = call.node.pipeline
    match asked.resource_type:
        case ResourceType.TOPIC:
            topic, _ = pipeline.describe_topic(call.session, asked.resource_name)
            return topic_configs(topic.configs)
        case ResourceType.BROKER:
            pipeline.require(call.session, Action.METRICS, "configs of the broker")
            _require_broker(call, asked.resource_name)
            return broker_configs(own_configs(call.node)) if asked.resource_name else ()
    raise _unserved(asked.resource_type)


def _require_broker(call: Call, name: str) -> None:
    """The empty name is of the defaults of all brokers, of which none is dynamic here."""
    if name and name != str(call.node.node_id):
        raise Refusal(ErrorCode.INVALID_REQUEST, f"{name[:80]!r} is no broker here: this one is {call.node.node_id}")


def _unserved(resource_type: int) -> Refusal:
    return Refusal(
        ErrorCode.INVALID_REQUEST, f"resources of type {resource_type} have no configs here: topics (2) and brokers (4) do"
    )


async def alter_configs(call: Call, request: Any) -> dict[str, Any]:
    """All configs of a topic replaced: those not named go back to their defaults."""

    def changes(asked: Any, present: Mapping[str, str]) -> dict[str, str | None]:
        given = {config.name: _value(config) for config in asked.configs}
        left = dict.fromkeys(present)
        return {**left, **settable(asked.resource_name, given)}

    return await _alter(call, request, changes)


async def incremental_alter_configs(call: Call, request: Any) -> dict[str, Any]:
    """Some configs of a topic set, put back to their defaults, or lists of them added to or taken from."""

    def changes(asked: Any, present: Mapping[str, str]) -> dict[str, str | None]:
        reset = [config.name for config in asked.configs if config.config_operation == Change.DELETE]
        given = {config.name: _changed(config, present) for config in asked.configs if config.config_operation != Change.DELETE}
        # Kafka takes the deletion of a config that it does not know for done.
        return {**{name: None for name in reset if name in present}, **settable(asked.resource_name, given)}

    return await _alter(call, request, changes)


def _changed(config: Any, present: Mapping[str, str]) -> str:
    value = _value(config)
    try:
        change = Change(config.config_operation)
    except ValueError:
        raise Refusal(
            ErrorCode.INVALID_REQUEST, f"{config.config_operation} is no operation on configs: there are 0 to 3"
        ) from None
    if change is Change.SET:
        return value
    if kind_of(config.name) is not ConfigKind.LIST:
        reason = f"config {config.name[:80]!r} is no list: nothing can be added to it or taken from it"
        raise Refusal(ErrorCode.INVALID_CONFIG, reason)
    default = RULES[config.name].default if config.name in RULES else FIXED[config.name][1]
    items, named = listed(present.get(config.name, default)), listed(value)
    if change is Change.APPEND:
        return ",".join([*items, *(item for item in named if item not in items)])
    return ",".join(item for item in items if item not in named)


def _value(config: Any) -> str:
    if config.value is None:
        raise Refusal(ErrorCode.INVALID_REQUEST, f"config {config.name[:80]!r} has no value")
    value: str = config.value
    return value


Changes = Callable[[Any, Mapping[str, str]], dict[str, str | None]]


async def _alter(call: Call, request: Any, changes: Changes) -> dict[str, Any]:
    times = Counter((one.resource_type, one.resource_name) for one in request.resources)
    answers = []
    async for asked in in_turns({(one.resource_type, one.resource_name): one for one in request.resources}.values()):
        answer = {
            "error_code": 0,
            "error_message": None,
            "resource_type": asked.resource_type,
            "resource_name": asked.resource_name,
        }
        try:
            if times[asked.resource_type, asked.resource_name] > 1:
                raise Refusal(ErrorCode.INVALID_REQUEST, "each resource is named at most once")
            await _alterer(asked.resource_type)(call, asked, request.validate_only, changes)
        except REFUSED as error:
            answer["error_code"], answer["error_message"] = told(error)
        answers.append(answer)
    return {"responses": answers}


def _alterer(resource_type: int) -> Callable[[Call, Any, bool, Changes], Awaitable[None]]:
    match resource_type:
        case ResourceType.TOPIC:
            return _alter_topic
        case ResourceType.BROKER:
            return _alter_broker
    raise _unserved(resource_type)


async def _alter_topic(call: Call, asked: Any, validate_only: bool, changes: Changes) -> None:
    pipeline, name = call.node.pipeline, asked.resource_name
    if not name:
        raise Refusal(ErrorCode.INVALID_REQUEST, "configs are altered topic by topic: the name is empty")
    pipeline.authorise(call.session, Action.ALTER, name)
    _require_single(asked.configs)
    changed = changes(asked, pipeline.broker.topic(name).configs)
    await pipeline.alter_topic(call.session, name, None, changed, validate_only=validate_only)


async def _alter_broker(call: Call, asked: Any, validate_only: bool, changes: Changes) -> None:
    call.node.pipeline.require(call.session, Action.ADMIN, "configs of the broker")
    _require_broker(call, asked.resource_name)
    _require_single(asked.configs)
    if asked.configs:
        names = ", ".join(config.name[:80] for config in asked.configs[:5])
        raise Refusal(ErrorCode.INVALID_REQUEST, f"configs of the broker are set in its configuration file: {names}")


def _require_single(configs: Sequence[Any]) -> None:
    if len({config.name for config in configs}) != len(configs):
        raise Refusal(ErrorCode.INVALID_REQUEST, "a config is named more than once")


async def list_config_resources(call: Call, request: Any) -> dict[str, Any]:
    """Version 0 asks for client metrics, of which there are none. Topics are told to those who may describe them."""
    try:
        call.node.pipeline.require(call.session, Action.METRICS, "the list of resources with configs")
    except REFUSED as error:
        return {"error_code": told(error)[0], "config_resources": []}
    asked = frozenset(getattr(request, "resource_types", (16,)) or KAFKAS_RESOURCE_TYPES)
    if not asked <= KAFKAS_RESOURCE_TYPES:
        return {"error_code": int(ErrorCode.UNSUPPORTED_VERSION), "config_resources": []}
    found: list[tuple[int, str]] = []
    if ResourceType.TOPIC in asked:
        found += [(ResourceType.TOPIC, topic.name) for topic in call.node.pipeline.list_topics(call.session)]
    if ResourceType.BROKER in asked:
        found.append((ResourceType.BROKER, str(call.node.node_id)))
    return {
        "error_code": 0,
        "config_resources": [{"resource_name": name, "resource_type": int(kind)} for kind, name in found],
    }


OPERATIONS = (
    Operation(api=32, name="DescribeConfigs", low=1, high=4, handle=describe_configs),
    Operation(api=33, name="AlterConfigs", low=0, high=2, handle=alter_configs),
    Operation(api=44, name="IncrementalAlterConfigs", low=0, high=1, handle=incremental_alter_configs),
    Operation(api=74, name="ListConfigResources", low=0, high=1, handle=list_config_resources),
)
