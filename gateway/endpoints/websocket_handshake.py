"""The decision about an opening handshake: who may connect from where, with which credential, and the answer if not."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gateway.endpoints.websocket_options import WebSocketOptions
from gateway.errors import Draining, RouteUnknown, answer_headers, problem, translate
from gateway.wire.websocket import Upgrade, origin_allowed
from security.identity.chain import BearerToken, ClientCertificate, Credential, NoCredential

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


class Refusal(msgspec.Struct, frozen=True):
    """An HTTP answer in place of the upgrade; `slug` is the last part of the problem's type."""

    status: int
    slug: str
    headers: dict[str, str]
    body: bytes


def request_id_of(upgrade: Upgrade, made: str) -> str:
    """The client's own if it is one, else the one we made."""
    given = upgrade.request_id
    return given if given is not None and _REQUEST_ID.fullmatch(given) else made


def check_upgrade(
    upgrade: Upgrade, options: WebSocketOptions, *, secure: bool, draining: bool, request_id: str
) -> Refusal | None:
    """What is wrong before anybody asks who it is; None if nothing."""
    if draining:
        return refusal_of(Draining(), request_id)
    if upgrade.path != options.path:
        return refusal_of(RouteUnknown(), request_id)
    if not origin_allowed(upgrade.origin, upgrade.host, secure=secure, allowed=options.origins):
        return _origin_refusal(upgrade.origin or "", request_id)
    return None


def credential_of(upgrade: Upgrade, certificate: bytes | None) -> Credential:
    """The most explicit one: a header, a sub-protocol, the certificate of the TLS connection."""
    if upgrade.authorization is not None:
        scheme, _, token = upgrade.authorization.partition(" ")
        # As over REST: another scheme is a credential that nobody here recognises, and is audited as one.
        return BearerToken(token.strip() if scheme.lower() == "bearer" else "")
    if upgrade.token is not None:
        return BearerToken(upgrade.token)
    return ClientCertificate(certificate) if certificate else NoCredential()


def refusal_of(error: Exception, request_id: str) -> Refusal:
    row = translate(error)
    headers = {name.decode(): value.decode() for name, value in answer_headers(error)}
    return _refusal(row.status, row.slug, problem(error, request_id), headers)


def _origin_refusal(origin: str, request_id: str) -> Refusal:
    document = {
        "type": "/problems/origin-refused",
        "title": "Pages of this origin may not connect",
        "status": 403,
        "detail": f"pages of {origin[:200]!r} may not connect here; add the origin to websocket.origins if they should",
        "instance": request_id,
    }
    return _refusal(403, "origin-refused", document, {})


def _refusal(status: int, slug: str, document: dict[str, Any], headers: dict[str, str]) -> Refusal:
    fixed = {"Content-Type": "application/problem+json", "X-Request-Id": document["instance"]}
    return Refusal(status, slug, fixed | headers, msgspec.json.encode(document))
