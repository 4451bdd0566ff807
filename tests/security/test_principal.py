"""Principals: frozen, nominal, and cheap to ask a policy about."""

from dataclasses import FrozenInstanceError

import pytest

from security.policy.model import Action, Scope
from security.principal import ANONYMOUS, NAME_CHARS_MAX, Principal, PrincipalKind, Session


def alice(**changes):
    return Principal(**{"name": "user:alice", "kind": PrincipalKind.USER, "proved_by": "token", **changes})


def test_a_principal_cannot_be_changed_nor_can_its_claims():
    claims = {"department": "shop"}
    principal = alice(claims=claims)
    claims["department"] = "vault"
    assert principal.claims["department"] == "shop"
    with pytest.raises(TypeError):
        principal.claims["department"] = "vault"
    with pytest.raises(FrozenInstanceError):
        principal.name = "user:mallory"


def test_principals_are_values_and_sessions_are_not():
    assert alice() == alice()
    assert hash(alice(claims={"list": [1]})) == hash(alice(claims={"list": [1]}))
    one = Session(alice(), "127.0.0.1:5000", "rest", "r1")
    other = Session(alice(), "127.0.0.1:5000", "rest", "r1")
    assert one != other
    assert len({one, other}) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"name": "user:bob"},
        {"kind": PrincipalKind.SERVICE},
        {"groups": frozenset({"shop"})},
        {"roles": frozenset({"shop"})},
        {"scopes": ()},
        {"scopes": (Scope(frozenset({Action.READ}), "orders"),)},
        {"scopes": (Scope(frozenset({Action.READ}), "orders", ""),)},
    ],
)
def test_the_identity_key_tells_apart_whatever_a_decision_depends_on(change):
    assert alice(**change).identity_key != alice().identity_key


def test_the_identity_key_is_shared_by_what_a_decision_does_not_depend_on():
    other = alice(claims={"a": 1}, credential_id="tok", expires_at_ms=5)
    assert other.identity_key == alice().identity_key


def test_no_two_sets_of_names_share_an_identity_key():
    crafted = alice(groups=frozenset({"a', 'b"}))
    assert crafted.identity_key != alice(groups=frozenset({"a", "b"})).identity_key
    assert alice(groups=frozenset({"a"})).identity_key != alice(roles=frozenset({"a"})).identity_key


@pytest.mark.parametrize("name", ["", "user:a\nb", "user:\x00", "user:" + "a" * NAME_CHARS_MAX, "user:\ud800"])
def test_names_that_would_break_a_log_line_are_refused(name):
    with pytest.raises(ValueError, match="printable"):
        alice(name=name)


def test_nobody_else_is_called_anonymous_and_anonymous_is_called_nothing_else():
    with pytest.raises(ValueError, match="anonymous"):
        alice(name="anonymous")
    with pytest.raises(ValueError, match="anonymous"):
        alice(kind=PrincipalKind.ANONYMOUS)
    assert ANONYMOUS.roles == ANONYMOUS.groups == frozenset()


def test_credentials_expire_at_their_time_and_not_before():
    assert not alice(expires_at_ms=1_000).expired(999)
    assert alice(expires_at_ms=1_000).expired(1_000)
    assert not alice().expired(1 << 62)


def test_claims_are_not_shown():
    assert "0123-456" not in repr(alice(claims={"phone": "0123-456"}))
