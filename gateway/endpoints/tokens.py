"""/v1/tokens: make, list and revoke access tokens. /v1/whoami: what one's own credential amounts to."""

from __future__ import annotations

import asyncio

import msgspec

from gateway.endpoints.documents import DOCUMENT_REFUSALS, answer_document, answer_nothing, document_body, read_document
from gateway.endpoints.exchange import NO_STORE, Exchange
from gateway.endpoints.operations import Answer, Operation, Parameter, Schema
from gateway.endpoints.parameters import PRINTABLE, nullable, number
from gateway.errors import ParameterInvalid
from gateway.pipeline import Pipeline
from security.identity.token_file import TokenStoreBusy, TokenStoreFull
from security.identity.tokens import (
    NAME_CHARS_MAX,
    ROLES_PER_TOKEN_MAX,
    SCOPES_PER_TOKEN_MAX,
    TTL_MS_MAX,
    TokenRecord,
    TokenStore,
    TokenUnknown,
)
from security.policy.model import Action, Scope

UNSTORED = [NO_STORE]


class NewToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`scopes` as `actions:topic[:key]`, null not to narrow; `ttl_ms` null for no end."""

    name: str
    roles: list[str]
    scopes: list[str] | None = None
    ttl_ms: int | None = None


class TokenAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """`token` is there once, in the answer to its making."""

    id: str
    name: str
    roles: tuple[str, ...]
    scopes: list[str] | None
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None
    token: str = ""

    def __repr__(self) -> str:
        return f"TokenAnswer(id={self.id!r})"


class Tokens(msgspec.Struct, frozen=True):
    tokens: list[TokenAnswer]


class Whoami(msgspec.Struct, frozen=True):
    principal: str
    kind: str
    proved_by: str
    credential_id: str | None
    expires_at_ms: int | None
    groups: list[str]
    roles: tuple[str, ...]
    unknown_roles: tuple[str, ...]
    rules: tuple[str, ...]
    scopes: tuple[str, ...] | None


_ACTIONS_OF_TOPIC = "(?:publish|read|describe|create|alter|delete)"
_ACTIONS = f"(?:metrics|tokens|admin|{_ACTIONS_OF_TOPIC})"
_TOPIC = r"(?:\*|[a-zA-Z0-9._-]{1,249}\*?)"
_SCOPES = (
    rf"{_ACTIONS}(?:,{_ACTIONS})*:\*",
    rf"(?:{_ACTIONS_OF_TOPIC}(?:,{_ACTIONS_OF_TOPIC})*|\*):{_TOPIC}",
    rf"(?:(?:publish|read)(?:,(?:publish|read))*|\*):{_TOPIC}:[ -)+-~]{{0,200}}\*?",
)
# What is checked besides the types.
_CHECKED: Schema = {
    "properties": {
        "name": {**PRINTABLE, "maxLength": NAME_CHARS_MAX},
        "roles": {"maxItems": ROLES_PER_TOKEN_MAX, "items": {"pattern": "^[A-Za-z][A-Za-z0-9._-]{0,63}$"}},
        "scopes": nullable(
            {
                "type": "array",
                "minItems": 1,
                "maxItems": SCOPES_PER_TOKEN_MAX,
                "items": {"type": "string", "pattern": f"^(?:{'|'.join(_SCOPES)})$"},
            }
        ),
        "ttl_ms": nullable(number(TTL_MS_MAX, 1)),
    }
}


class TokenRoutes:
    def __init__(self, pipeline: Pipeline, tokens: TokenStore) -> None:
        self._pipeline, self._tokens = pipeline, tokens

    def operations(self) -> list[Operation]:
        json, tag = "application/json", "tokens"
        one = Parameter(
            name="token_id", place="path", about="the token's id, as in the list", schema={"type": "string", "minLength": 1}
        )
        stored = (TokenStoreBusy, TokenStoreFull)
        document = DOCUMENT_REFUSALS
        made = Answer("The token: its text is told here, once", {json: TokenAnswer})
        return [
            Operation(
                "GET",
                "/v1/tokens",
                self.list,
                "list_tokens",
                "All tokens, without their texts",
                {200: Answer("The tokens", {json: Tokens})},
                tag=tag,
            ),
            Operation(
                "POST",
                "/v1/tokens",
                self.create,
                "create_token",
                "Make a token",
                {201: made},
                tag=tag,
                body=document_body(NewToken, _CHECKED),
                refusals=(*document, *stored),
            ),
            Operation(
                "DELETE",
                "/v1/tokens/{token_id}",
                self.revoke,
                "revoke_token",
                "Revoke a token",
                {204: Answer("It is revoked")},
                tag=tag,
                parameters=(one,),
                refusals=(TokenUnknown, *stored),
            ),
            Operation(
                "GET",
                "/v1/whoami",
                self.whoami,
                "whoami",
                "What one's own credential amounts to",
                {200: Answer("Name, roles, rules", {json: Whoami})},
                tag=tag,
            ),
        ]

    async def create(self, exchange: Exchange) -> None:
        self._pipeline.require(exchange.session, Action.TOKENS, "create a token")
        new = await read_document(exchange, NewToken)
        scopes = None if new.scopes is None else [_scope(text) for text in new.scopes]
        self._pipeline.require_grantable(exchange.session, new.roles, scopes, new.ttl_ms)
        try:
            # On a thread: the store waits for the disk, and for the command line's lock.
            text, record = await asyncio.to_thread(self._tokens.create, new.name, new.roles, scopes, new.ttl_ms)
        except ValueError as error:
            raise ParameterInvalid("the token", str(error)) from None
        await answer_document(exchange, 201, _token(record, text), UNSTORED)

    async def list(self, exchange: Exchange) -> None:
        self._pipeline.require(exchange.session, Action.TOKENS, "list tokens")
        await answer_document(exchange, 200, Tokens([_token(record) for record in self._tokens.list()]))

    async def revoke(self, exchange: Exchange, token_id: str) -> None:
        self._pipeline.require(exchange.session, Action.TOKENS, f"revoke token {token_id[:32]}")
        await asyncio.to_thread(self._tokens.revoke, token_id)
        await answer_nothing(exchange)

    async def whoami(self, exchange: Exchange) -> None:
        principal = exchange.session.principal
        rights = self._pipeline.policy.describe_for(principal)
        answer = Whoami(
            principal.name,
            principal.kind.value,
            principal.proved_by,
            principal.credential_id,
            principal.expires_at_ms,
            sorted(principal.groups),
            rights.roles,
            rights.unknown_roles,
            rights.rules,
            rights.scopes,
        )
        await answer_document(exchange, 200, answer)


def _scope(text: str) -> Scope:
    try:
        return Scope.parse(text)
    except ValueError as error:
        raise ParameterInvalid("scopes", str(error)) from None


def _token(record: TokenRecord, text: str = "") -> TokenAnswer:
    scopes = None if record.scopes is None else [str(scope) for scope in record.scopes]
    times = (record.created_at_ms, record.expires_at_ms, record.revoked_at_ms)
    return TokenAnswer(record.id, record.name, record.roles, scopes, *times, text)
