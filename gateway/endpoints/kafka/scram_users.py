"""DescribeUserScramCredentials 0 and AlterUserScramCredentials 0 (KIP-554): what `kafka-configs.sh --entity-type users` asks.

A client salts the password itself and sends what RFC 5802 calls SaltedPassword; of that only StoredKey and ServerKey are kept.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.operation import Operation
from gateway.endpoints.kafka.refusal import REFUSED, Refusal, told
from gateway.wire.kafka.error_codes import ErrorCode
from security.identity.scram import HASHES, secret_of_salted
from security.identity.users import UserRecord, UserStore, UserUnknown, principal_of, user_name_problem
from security.policy.model import Action

MECHANISMS = {1: "SCRAM-SHA-256", 2: "SCRAM-SHA-512"}  # ScramMechanism of KIP-554; 0 is unknown
_TYPES = {name: type for type, name in MECHANISMS.items()}


async def describe_users(call: Call, request: Any) -> dict[str, Any]:
    """All users, or those asked for; one asked for twice is told so, as in Kafka."""
    try:
        call.node.pipeline.require(call.session, Action.TOKENS, "list users")
    except REFUSED as error:
        code, message = told(error)
        return {"error_code": code, "error_message": message, "results": []}
    known = {record.name: mechanisms for record, mechanisms in _users(call).list() if mechanisms}
    asked = Counter(user.name for user in request.users or ()) or Counter(list(known))
    return {"error_code": 0, "error_message": None, "results": [_described(name, times, known) for name, times in asked.items()]}


def _users(call: Call) -> UserStore:
    users = call.node.users
    assert users is not None, "advertised only where there are users"
    return users


def _described(name: str, times: int, known: dict[str, dict[str, int]]) -> dict[str, Any]:
    if times > 1:
        return _result(name, int(ErrorCode.DUPLICATE_RESOURCE), f"the user {name[:100]!r} is asked for more than once")
    mechanisms = known.get(name)
    if mechanisms is None:
        return _result(name, int(ErrorCode.RESOURCE_NOT_FOUND), f"the user {name[:100]!r} has no SCRAM credential")
    infos = [{"mechanism": _TYPES[mechanism], "iterations": iterations} for mechanism, iterations in mechanisms.items()]
    return {**_result(name, 0, None), "credential_infos": infos}


def _result(name: str, code: int, message: str | None) -> dict[str, Any]:
    return {"user": name, "error_code": code, "error_message": message, "credential_infos": []}


async def alter_users(call: Call, request: Any) -> dict[str, Any]:
    """Each user once: a deletion and an insertion of the same credential in one request contradict each other."""
    pairs = Counter((change.name, change.mechanism) for change in (*request.deletions, *request.upsertions))
    repeated = {name for (name, _), times in pairs.items() if times > 1}
    answers: dict[str, tuple[int, str | None]] = {}
    for change in (*request.deletions, *request.upsertions):
        if answers.get(change.name, (0, None))[0] == 0:  # of a user who was refused nothing more is done
            answers[change.name] = await _altered(call, change, change.name in repeated)
    results = [{"user": name, "error_code": code, "error_message": message} for name, (code, message) in answers.items()]
    return {"results": results}


async def _altered(call: Call, change: Any, repeated: bool) -> tuple[int, str | None]:
    try:
        call.node.pipeline.require(call.session, Action.TOKENS, f"change the user {change.name[:100]}")
        if repeated:
            raise Refusal(ErrorCode.DUPLICATE_RESOURCE, "one request changes a user's credential of a mechanism once")
        problem = user_name_problem(change.name)
        if problem is not None:
            raise Refusal(ErrorCode.UNACCEPTABLE_CREDENTIAL, problem)
        mechanism = MECHANISMS.get(change.mechanism)
        if mechanism is None:
            raise Refusal(ErrorCode.UNSUPPORTED_SASL_MECHANISM, f"there is no SCRAM mechanism {change.mechanism}")
        record = _users(call).find(change.name) or UserRecord(change.name, (), 0)
        call.node.pipeline.require_account(call.session, principal_of(record))
        await asyncio.to_thread(_change, _users(call), change, mechanism)
    except UserUnknown as error:
        return int(ErrorCode.RESOURCE_NOT_FOUND), str(error)
    except ValueError as error:
        return int(ErrorCode.UNACCEPTABLE_CREDENTIAL), str(error)
    except REFUSED as error:
        return told(error)
    return 0, None


def _change(users: UserStore, change: Any, mechanism: str) -> None:
    """Blocks on the disk."""
    salted = getattr(change, "salted_password", None)
    if salted is None:
        users.delete_secret(change.name, mechanism)
        return
    if len(salted) != HASHES[mechanism]().digest_size:
        raise ValueError(f"a salted password of {mechanism} has {HASHES[mechanism]().digest_size} bytes, not {len(salted)}")
    secret = secret_of_salted(mechanism, bytes(salted), bytes(change.salt), change.iterations)
    users.put_secret(change.name, mechanism, secret)


OPERATIONS = (
    Operation(api=50, name="DescribeUserScramCredentials", low=0, high=0, handle=describe_users),
    Operation(api=51, name="AlterUserScramCredentials", low=0, high=0, handle=alter_users),
)
