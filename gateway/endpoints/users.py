"""/v1/users: users with passwords, as the Kafka protocol's SCRAM proves them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gateway.endpoints.documents import DOCUMENT_REFUSALS, answer_document, answer_nothing, document_body, read_document
from gateway.endpoints.exchange import Exchange
from gateway.endpoints.operations import Answer, Operation, Parameter, Schema
from gateway.endpoints.parameters import PRINTABLE
from gateway.errors import Busy, ParameterInvalid
from gateway.pipeline import RETRY_AFTER_MS, Pipeline
from security.identity.scram import NAME_CHARS_MAX
from security.identity.users import (
    PASSWORD_CHARS_MAX,
    PASSWORD_CHARS_MIN,
    ROLES_PER_USER_MAX,
    UserExists,
    UserRecord,
    UserStore,
    UserStoreBusy,
    UserStoreFull,
    UserUnknown,
    principal_of,
    user_name_problem,
)
from security.policy.model import Action

HASHINGS_MAX = 2


class NewUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    password: str
    roles: list[str] = []

    def __repr__(self) -> str:
        return f"NewUser(name={self.name!r})"


class NewPassword(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    password: str

    def __repr__(self) -> str:
        return "NewPassword()"


class UserAnswer(msgspec.Struct, frozen=True):
    """`mechanisms`: how the user can log in, with the iterations that the password is salted with."""

    name: str
    roles: tuple[str, ...]
    created_at_ms: int
    mechanisms: dict[str, int]


class Users(msgspec.Struct, frozen=True):
    users: list[UserAnswer]


_PASSWORD: Schema = {**PRINTABLE, "minLength": PASSWORD_CHARS_MIN, "maxLength": PASSWORD_CHARS_MAX}
_NEW_USER: Schema = {
    "properties": {
        "name": {**PRINTABLE, "maxLength": NAME_CHARS_MAX},
        "password": _PASSWORD,
        "roles": {"maxItems": ROLES_PER_USER_MAX, "items": {"pattern": "^[A-Za-z][A-Za-z0-9._-]{0,63}$"}},
    }
}
_NEW_PASSWORD: Schema = {"properties": {"password": _PASSWORD}}


class UserRoutes:
    def __init__(self, pipeline: Pipeline, users: UserStore, hashings_max: int = HASHINGS_MAX) -> None:
        self._pipeline, self._users = pipeline, users
        self._hashings, self._hashings_max = 0, hashings_max

    def operations(self) -> list[Operation]:
        json, tag = "application/json", "users"
        one = Parameter(name="user_name", place="path", about="the user's name", schema={"type": "string", "minLength": 1})
        stored = (UserStoreBusy, UserStoreFull)
        return [
            Operation(
                "GET",
                "/v1/users",
                self.list,
                "list_users",
                "All users, and how they can log in",
                {200: Answer("The users", {json: Users})},
                tag=tag,
            ),
            Operation(
                "POST",
                "/v1/users",
                self.create,
                "create_user",
                "Make a user who logs in with a password",
                {201: Answer("The user", {json: UserAnswer})},
                tag=tag,
                body=document_body(NewUser, _NEW_USER),
                refusals=(*DOCUMENT_REFUSALS, UserExists, *stored),
            ),
            Operation(
                "PUT",
                "/v1/users/{user_name}/password",
                self.set_password,
                "set_password",
                "Give a user another password",
                {204: Answer("The new password holds, the old one does not")},
                tag=tag,
                parameters=(one,),
                body=document_body(NewPassword, _NEW_PASSWORD),
                refusals=(*DOCUMENT_REFUSALS, UserUnknown, *stored),
            ),
            Operation(
                "DELETE",
                "/v1/users/{user_name}",
                self.delete,
                "delete_user",
                "Delete a user",
                {204: Answer("The user is gone")},
                tag=tag,
                parameters=(one,),
                refusals=(UserUnknown, *stored),
            ),
        ]

    async def list(self, exchange: Exchange) -> None:
        self._pipeline.require(exchange.session, Action.TOKENS, "list users")
        await answer_document(exchange, 200, Users([_user(record, mechanisms) for record, mechanisms in self._users.list()]))

    async def create(self, exchange: Exchange) -> None:
        self._pipeline.require(exchange.session, Action.TOKENS, "create a user")
        new = await read_document(exchange, NewUser)
        self._require_account(exchange, new.name, new.roles)
        record = await self._hashed(self._users.create, new.name, new.roles, new.password)
        mechanisms = next(mechanisms for known, mechanisms in self._users.list() if known.name == record.name)
        await answer_document(exchange, 201, _user(record, mechanisms))

    async def set_password(self, exchange: Exchange, user_name: str) -> None:
        self._pipeline.require(exchange.session, Action.TOKENS, f"set the password of user {user_name[:NAME_CHARS_MAX]}")
        new = await read_document(exchange, NewPassword)
        self._require_account(exchange, user_name)
        await self._hashed(self._users.set_password, user_name, new.password)
        await answer_nothing(exchange)

    async def delete(self, exchange: Exchange, user_name: str) -> None:
        self._pipeline.require(exchange.session, Action.TOKENS, f"delete user {user_name[:NAME_CHARS_MAX]}")
        self._require_account(exchange, user_name)
        await _changed(self._users.delete, user_name)
        await answer_nothing(exchange)

    async def _hashed(self, change: Callable[..., Any], *arguments: object) -> Any:
        """Salting takes milliseconds of a CPU that others want too, and of threads that look after revocations."""
        if self._hashings >= self._hashings_max:
            raise Busy("users.hashings_max", self._hashings_max, RETRY_AFTER_MS)
        self._hashings += 1
        try:
            return await _changed(change, *arguments)
        finally:
            self._hashings -= 1

    def _require_account(self, exchange: Exchange, name: str, roles: Sequence[str] = ()) -> None:
        if user_name_problem(name) is None:  # else there is no such user, and there will be none
            record = self._users.find(name) or UserRecord(name, (), 0)
            self._pipeline.require_account(exchange.session, principal_of(record), roles)


async def _changed(change: Callable[..., Any], *arguments: object) -> Any:
    """On a thread: the store waits for the disk and for the command line's lock."""
    try:
        return await asyncio.to_thread(change, *arguments)
    except ValueError as error:
        raise ParameterInvalid("the user", str(error)) from None


def _user(record: UserRecord, mechanisms: dict[str, int]) -> UserAnswer:
    return UserAnswer(record.name, record.roles, record.created_at_ms, mechanisms)
