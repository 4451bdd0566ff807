"""Fuzz target: bearer tokens against a store with a live, an expired and a revoked one."""

from __future__ import annotations

import atexit
from pathlib import Path
from tempfile import TemporaryDirectory

from security.errors import IdentityProblem
from security.identity.tokens import TokenStore
from tests.fuzz.refusals import check_refusal
from tests.vectors.make_sealed_log_v1 import CountedRandom

NOW_MS = 1_760_000_000_000
_FOLDER = TemporaryDirectory()
atexit.register(_FOLDER.cleanup)
_now_ms = [NOW_MS]
_STORE = TokenStore(Path(_FOLDER.name) / "tokens.json", lambda: _now_ms[0], CountedRandom("tokens").bytes)
_LIVE, _ = _STORE.create("live", ["reader"])
_EXPIRED, _ = _STORE.create("expired", ["admin"], ttl_ms=1)
_REVOKED, _revoked = _STORE.create("revoked", ["admin"])
_STORE.revoke(_revoked.id)
_now_ms[0] += 1000

CORPUS = [text.encode() for text in (_LIVE, _EXPIRED, _REVOKED, _LIVE[:-1] + "=", _LIVE + "\n", _LIVE.upper(), _LIVE[:20])]


def one_input(data: bytes) -> None:
    for text in {data.decode("latin-1"), data.decode("utf-8", "surrogateescape")}:
        try:
            principal = _STORE.authenticate(text)
        except IdentityProblem as error:
            _check(text, error)
            continue
        assert text == _LIVE, "another text authenticates"
        assert principal.roles == {"reader"}


def _check(text: str, error: IdentityProblem) -> None:
    check_refusal(error)
    assert text != _LIVE, "a live token is refused"
    assert len(text) < 40 or text not in str(error), "the message repeats the credential"
