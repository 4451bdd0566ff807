"""/v1/tokens: make, list and revoke access tokens. /v1/whoami: what one's own credential amounts to."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.endpoints.documents import answer_document, exchange_of, read_document
from gateway.errors import ParameterInvalid
from gateway.pipeline import Pipeline
from security.identity.tokens import TokenRecord, TokenStore
from security.policy.model import Action, Scope

NO_STORE = {"cache-control": "no-store"}


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


class TokenRoutes:
    def __init__(self, pipeline: Pipeline, tokens: TokenStore) -> None:
        self._pipeline, self._tokens = pipeline, tokens

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/v1/tokens", self.create, methods=["POST"]),
            Route("/v1/tokens", self.list, methods=["GET"]),
            Route("/v1/tokens/{token_id}", self.revoke, methods=["DELETE"]),
            Route("/v1/whoami", self.whoami, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        exchange = exchange_of(request)
        self._pipeline.require(exchange.session, Action.TOKENS, "create a token")
        new = await read_document(exchange, NewToken)
        scopes = None if new.scopes is None else [_scope(text) for text in new.scopes]
        self._pipeline.require_grantable(exchange.session, new.roles, scopes, new.ttl_ms)
        try:
            # On a thread: the store waits for the disk, and for the command line's lock.
            text, record = await asyncio.to_thread(self._tokens.create, new.name, new.roles, scopes, new.ttl_ms)
        except ValueError as error:
            raise ParameterInvalid("the token", str(error)) from None
        return answer_document(201, _token(record, text), NO_STORE)

    async def list(self, request: Request) -> Response:
        self._pipeline.require(exchange_of(request).session, Action.TOKENS, "list tokens")
        return answer_document(200, {"tokens": [_token(record) for record in self._tokens.list()]})

    async def revoke(self, request: Request) -> Response:
        token_id = request.path_params["token_id"]
        self._pipeline.require(exchange_of(request).session, Action.TOKENS, f"revoke token {token_id[:32]}")
        await asyncio.to_thread(self._tokens.revoke, token_id)
        return Response(status_code=204)

    async def whoami(self, request: Request) -> Response:
        principal = exchange_of(request).session.principal
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
        return answer_document(200, answer)


def _scope(text: str) -> Scope:
    try:
        return Scope.parse(text)
    except ValueError as error:
        raise ParameterInvalid("scopes", str(error)) from None


def _token(record: TokenRecord, text: str = "") -> TokenAnswer:
    scopes = None if record.scopes is None else [str(scope) for scope in record.scopes]
    times = (record.created_at_ms, record.expires_at_ms, record.revoked_at_ms)
    return TokenAnswer(record.id, record.name, record.roles, scopes, *times, text)
