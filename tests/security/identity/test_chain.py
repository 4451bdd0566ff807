"""The chain: the provider of a credential's kind decides, and a refusal is final."""

import pytest

from security.errors import CredentialsInvalid, CredentialsMissing, IdentityProblem, TokenExpired
from security.identity.chain import BearerToken, Chain, ClientCertificate, NoCredential
from security.principal import ANONYMOUS, Principal, PrincipalKind

ANN = Principal("user:ann", PrincipalKind.USER, "passport")


class Provider:
    """Knows one token text, or refuses every one with `refusal`."""

    mechanisms: tuple[str, ...] = ()

    def __init__(self, proves="passport", begins="p-", refusal=None):
        self.proves, self.begins, self.refusal = proves, begins, refusal
        self.asked = []

    def recognises(self, credential):
        return isinstance(credential, BearerToken) and credential.text.startswith(self.begins)

    async def authenticate(self, credential):
        self.asked.append(credential)
        if self.refusal:
            raise self.refusal
        return ANN

    def still_valid(self, principal):
        if self.refusal:
            raise self.refusal


async def test_the_first_provider_that_recognises_the_kind_decides():
    other, right, never = Provider("a", "x-"), Provider("passport", "p-"), Provider("b", "p-")
    assert await Chain([other, right, never]).authenticate(BearerToken("p-1")) is ANN
    assert (len(other.asked), len(right.asked), len(never.asked)) == (0, 1, 0)


async def test_a_refusal_is_final_even_where_anonymous_is_allowed():
    weaker = Provider("b", "")
    chain = Chain([Provider(refusal=TokenExpired("p", 0)), weaker])
    with pytest.raises(TokenExpired):
        await chain.authenticate(BearerToken("p-1"), anonymous_allowed=True)
    assert weaker.asked == []


@pytest.mark.parametrize("credential", [BearerToken("unheard-of"), BearerToken(""), ClientCertificate(b"")])
async def test_a_kind_that_nobody_knows_is_refused_even_where_anonymous_is_allowed(credential):
    for providers in ([], [Provider()]):
        with pytest.raises(CredentialsInvalid):
            await Chain(providers).authenticate(credential, anonymous_allowed=True)


async def test_nothing_offered_is_anonymous_only_where_the_listener_says_so():
    chain = Chain([Provider()])
    with pytest.raises(CredentialsMissing):
        await chain.authenticate(NoCredential())
    assert await chain.authenticate(NoCredential(), anonymous_allowed=True) is ANONYMOUS


def test_live_connections_are_judged_by_the_provider_that_proved_them():
    chain = Chain([Provider("passport"), Provider("badge", refusal=TokenExpired("p", 0))])
    chain.still_valid(ANN)
    chain.still_valid(ANONYMOUS)
    with pytest.raises(TokenExpired):
        chain.still_valid(Principal("user:ann", PrincipalKind.USER, "badge"))
    with pytest.raises(IdentityProblem):
        chain.still_valid(Principal("user:ann", PrincipalKind.USER, "handshake"))
    with pytest.raises(IdentityProblem):  # called anonymous by its proof only
        chain.still_valid(Principal("user:ann", PrincipalKind.USER, "anonymous"))


def test_two_providers_of_one_proof_are_a_mistake():
    with pytest.raises(ValueError, match="prove the same"):
        Chain([Provider(), Provider()])


def test_the_mechanisms_of_all_providers_are_the_chain_s():
    one, other = Provider("a"), Provider("b")
    one.mechanisms, other.mechanisms = ("PLAIN",), ("PLAIN", "OAUTHBEARER")
    assert Chain([one, other]).mechanisms == {"PLAIN", "OAUTHBEARER"}
    assert Chain([]).mechanisms == frozenset()


def test_credentials_do_not_show_what_they_hold():
    assert "hunter2" not in repr(BearerToken("hunter2"))
    assert "hunter2" not in repr([ClientCertificate(b"hunter2")])
