"""Groups as tools see them: ListGroups 0-5, DescribeGroups 0-6, DeleteGroups 0-2.

ListGroups      shows the groups that the session may use; 4+ by state (KIP-518), 5 by type (KIP-848)
DescribeGroups  classic groups; any other is "Dead", from 6 on GROUP_ID_NOT_FOUND (KIP-1043)
DeleteGroups    of either kind, with their offsets, once they have no members

A group that a request names again and again is answered once.
"""

from __future__ import annotations

from typing import Any

from broker.groups.classic import ClassicGroup, ClassicState
from broker.groups.classic_member import Member
from broker.groups.group_errors import GroupUnknown
from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.group_codes import code_of
from gateway.endpoints.kafka.operation import Operation
from gateway.endpoints.kafka.refusal import REFUSED, told
from gateway.endpoints.kafka.turns import in_turns
from security.policy.model import Action
from security.policy.quotas import Quota

DEAD = "Dead"
NOT_FOUND_VERSION = 6
NOT_ASKED_FOR = -(2**31)
EVERY_OPERATION = 1 << 3 | 1 << 6 | 1 << 8  # AclOperation's read, delete, describe: the action `group` is all of them


async def list_groups(call: Call, request: Any) -> dict[str, Any]:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    states = {state.lower() for state in getattr(request, "states_filter", ())}
    types = {kind.lower() for kind in getattr(request, "types_filter", ())}
    found = []
    async for name in in_turns(call.node.groups.names()):
        group = call.node.groups.find(name)
        if group is None or not call.node.pipeline.may_use_group(call.session, name):
            continue
        if (not states or group.state.lower() in states) and (not types or group.kind in types):
            found.append(
                {
                    "group_id": name,
                    "protocol_type": group.protocol_type,
                    "group_state": str(group.state),
                    "group_type": group.kind,
                }
            )
    return {"error_code": 0, "groups": found}


async def describe_groups(call: Call, request: Any) -> dict[str, Any]:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    asked = getattr(request, "include_authorized_operations", False)
    operations = EVERY_OPERATION if asked else NOT_ASKED_FOR
    return {"groups": [_describe(call, name, operations) async for name in in_turns(dict.fromkeys(request.groups))]}


def _describe(call: Call, name: str, operations: int) -> dict[str, Any]:
    try:
        call.node.pipeline.authorise_group(call.session, name)
        group = call.node.groups.find(name)
        if not isinstance(group, ClassicGroup):
            raise GroupUnknown(name, "does not exist" if group is None else "is not a classic group")
    except GroupUnknown as error:
        code, message = told(error)
        late = call.version >= NOT_FOUND_VERSION
        return _described(name, DEAD, code if late else 0, message if late else None, operations=operations)
    except REFUSED as error:
        code, message = told(error)
        return _described(name, "", code, message)
    stable = group.state is ClassicState.STABLE
    protocol = (group.protocol or "") if stable else ""
    return {
        **_described(name, str(group.state), 0, None, operations=operations),
        "protocol_type": group.protocol_type,
        "protocol_data": protocol,
        "members": [_member(member, protocol, stable) for member in group.members.values()],
    }


def _described(name: str, state: str, code: int, message: str | None, *, operations: int = NOT_ASKED_FOR) -> dict[str, Any]:
    return {
        "group_id": name,
        "error_code": code,
        "error_message": message,
        "group_state": state,
        "protocol_type": "",
        "protocol_data": "",
        "members": [],
        "authorized_operations": operations,
    }


def _member(member: Member, protocol: str, stable: bool) -> dict[str, Any]:
    return {
        "member_id": member.id,
        "group_instance_id": member.instance_id,
        "client_id": member.client_id,
        "client_host": member.client_host,
        "member_metadata": member.metadata(protocol) if stable else b"",
        "member_assignment": member.assignment,
    }


async def delete_groups(call: Call, request: Any) -> dict[str, Any]:
    call.node.pipeline.charge(call.session, Quota.REQUESTS, 1)
    names = dict.fromkeys(request.groups_names)
    return {"results": [{"group_id": name, "error_code": await _delete(call, name)} async for name in in_turns(names)]}


async def _delete(call: Call, name: str) -> int:
    try:
        call.node.pipeline.authorise_group(call.session, name)
        await call.node.groups.delete(name)
        call.node.pipeline.audit(call.session, Action.GROUP, f"group {name}: deleted")
    except REFUSED as error:
        return code_of(error)
    return 0


OPERATIONS = (
    Operation(api=16, name="ListGroups", low=0, high=5, handle=list_groups),
    Operation(api=15, name="DescribeGroups", low=0, high=6, handle=describe_groups),
    Operation(api=42, name="DeleteGroups", low=0, high=2, handle=delete_groups),
)
