"""SaslHandshake 0-1 and SaslAuthenticate 0-2 (KIP-43, KIP-152, KIP-368). The states are `authentication.py`'s.

A refusal is answered and then the connection closed, as Kafka does, and does not say which of name and password was wrong.
"""

from __future__ import annotations

from typing import Any

from gateway.endpoints.kafka.call import Call
from gateway.endpoints.kafka.operation import Answer, Operation
from gateway.wire.kafka.error_codes import ErrorCode
from security.errors import IdentityProblem, LoginsThrottled

REFUSED = "the credentials are not valid: check them, or ask for new ones"


async def sasl_handshake(call: Call, request: Any) -> Answer:
    authentication = call.connection.authentication
    mechanisms = list(authentication.mechanisms())
    if not authentication.possible:
        _out_of_order(call)
        return {"error_code": ErrorCode.ILLEGAL_SASL_STATE, "mechanisms": mechanisms}
    if not authentication.handshake(request.mechanism, call.version):
        call.connection.refused("mechanism")
        call.connection.finish()
        return {"error_code": ErrorCode.UNSUPPORTED_SASL_MECHANISM, "mechanisms": mechanisms}
    return {"error_code": ErrorCode.NONE, "mechanisms": mechanisms}


async def sasl_authenticate(call: Call, request: Any) -> Answer:
    authentication = call.connection.authentication
    if not authentication.expected:
        _out_of_order(call)
        return {
            "error_code": ErrorCode.ILLEGAL_SASL_STATE,
            "error_message": "SaslAuthenticate comes after a SaslHandshake that was answered with success",
        }
    try:
        answer = await authentication.message(request.auth_bytes)
    except IdentityProblem:
        call.connection.refused("unauthenticated")
        call.connection.finish()
        return {"error_code": ErrorCode.SASL_AUTHENTICATION_FAILED, "error_message": REFUSED}
    except LoginsThrottled as refusal:
        # Clients retry a lost connection, and give up at any error of SASL: the credential may be right.
        call.connection.cut("logins-throttled", str(refusal))
        return None
    return {"error_code": ErrorCode.NONE, "auth_bytes": answer, "session_lifetime": authentication.lifetime_ms()}


def _out_of_order(call: Call) -> None:
    call.connection.authentication.out_of_order()
    call.connection.refused("sasl-state")
    call.connection.finish()


OPERATIONS = (
    Operation(api=17, name="SaslHandshake", low=0, high=1, handle=sasl_handshake, open=True),
    Operation(api=36, name="SaslAuthenticate", low=0, high=2, handle=sasl_authenticate, open=True),
)
