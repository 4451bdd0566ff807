"""Bearer tokens: made once, kept as a hash, refused in constant time, revoked from anywhere."""

import hmac
import logging
import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.errors import CredentialsInvalid, TokenExpired, TokenRevoked
from security.identity.chain import BearerToken, ClientCertificate, NoCredential
from security.identity.tokens import (
    NAME_CHARS_MAX,
    ROLES_PER_TOKEN_MAX,
    SCOPES_PER_TOKEN_MAX,
    Scope,
    TokenProvider,
    TokenStore,
    TokenStoreDamaged,
    TokenStoreFull,
    TokenUnknown,
    bootstrap_admin,
)
from security.policy.model import Action
from security.principal import PrincipalKind
from tests.contracts.shared_store_contract import Clock, SharedStoreContract, spoil_file

READ_ORDERS = Scope(frozenset({Action.READ}), "orders*", "eu/*")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokens.json"


@pytest.fixture
def open_store(path, clock):
    """Opens the store once more, as another process would."""
    return lambda **options: TokenStore(path, clock, os.urandom, **options)


@pytest.fixture
def store(open_store):
    return open_store()


class TestCreate:
    def test_the_text_proves_the_principal_and_the_record_describes_it(self, store, clock):
        text, record = store.create("lift 7", ["publisher", "publisher"], [READ_ORDERS], ttl_ms=60_000)
        principal = store.authenticate(text)
        assert principal.name == f"token:{record.id}"
        assert principal.kind is PrincipalKind.SERVICE
        assert principal.proved_by == "token"
        assert principal.roles == {"publisher"}
        assert principal.scopes == (READ_ORDERS,)
        assert principal.expires_at_ms == clock.ms + 60_000 == record.expires_at_ms
        assert principal.credential_id == record.id
        assert principal.claims == {"token_name": "lift 7"}
        assert store.list() == [record]

    def test_the_text_has_its_shape_and_is_never_made_twice(self, store):
        texts = [store.create("t", [])[0] for _ in range(5)]
        for text in texts:
            word, token_id, secret = text.split("_", 2)
            assert (word, len(token_id), len(secret)) == ("sprawl", 12, 43)
        assert len({text[20:] for text in texts}) == 5

    def test_an_id_that_is_taken_is_made_anew(self, path, clock):
        ids = iter([b"\0" * 8, b"\0" * 8, b"\1" * 8])
        store = TokenStore(path, clock, lambda count: next(ids) if count == 8 else os.urandom(count))
        assert store.create("a", [])[1].id != store.create("b", [])[1].id

    def test_what_was_created_is_there_for_the_next_one_to_open_the_store(self, store, open_store):
        text, record = store.create("t", ["publisher"], [READ_ORDERS], 5_000)
        again = open_store()
        assert again.list() == [record]
        assert again.authenticate(text) == store.authenticate(text)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"name": ""},
            {"name": "n" * (NAME_CHARS_MAX + 1)},
            {"name": "a\nb"},
            {"roles": ["no such name"]},
            {"roles": ["r"] * (ROLES_PER_TOKEN_MAX + 1)},
            {"scopes": []},
            {"scopes": [READ_ORDERS] * (SCOPES_PER_TOKEN_MAX + 1)},
            {"ttl_ms": 0},
            {"ttl_ms": -1},
        ],
    )
    def test_arguments_out_of_their_bounds_make_nothing(self, store, path, wrong):
        with pytest.raises(ValueError, match=r".+"):
            store.create(**{"name": "t", "roles": [], **wrong})
        assert not path.exists()

    def test_at_the_bound_the_dead_make_room(self, open_store, clock):
        store = open_store(tokens_max=3)
        living = [store.create("t", [])[1], store.create("t", [], ttl_ms=1_000)[1]]
        dead_text, dead = store.create("t", [])
        with pytest.raises(TokenStoreFull) as full:
            store.create("one too many", [])
        assert (full.value.limit_name, full.value.limit) == ("tokens_max", 3)
        store.revoke(dead.id)
        _, newest = store.create("t", [])
        assert store.list() == sorted([*living, newest], key=lambda record: (record.created_at_ms, record.id))
        with pytest.raises(CredentialsInvalid):
            store.authenticate(dead_text)
        clock.ms += 1_000
        store.create("in the place of the expired", [])


class TestAuthenticate:
    HOSTILE = (
        "",
        " ",
        "sprawl",
        "sprawl_",
        "sprawl__",
        "Bearer x",
        "eyJhbGciOiJub25lIn0.e30.",
        "sprawl_" + "a" * 12,
        "sprawl_" + "a" * 12 + "_",
        "sprawl_" + "a" * 12 + "_" + "A" * 42,
        "sprawl_" + "a" * 12 + "_" + "A" * 44,
        "sprawl_" + "a" * 12 + "_" + "A" * 43 + "\n",
        "sprawl_" + "a" * 12 + "_" + "A" * 42 + "=",
        "sprawl_" + "a" * 12 + "_" + "A" * 42 + "é",
        "sprawl_" + "a" * 12 + "_" + "A" * 42 + "\x00",
        "sprawl_" + "a" * 12 + "_" + "٣" * 43,
        "sprawl_" + "1" * 12 + "_" + "A" * 43,
        "sprawl_" + "A" * 12 + "_" + "A" * 43,
        "sprawl_\ud800" + "a" * 11 + "_" + "A" * 43,
        "sprawl_" * 100_000,
        "a" * 10_000_000,
    )

    @pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
    def test_what_is_no_token_is_malformed(self, store, text):
        store.create("t", [])
        with pytest.raises(CredentialsInvalid) as refused:
            store.authenticate(text)
        assert refused.value.reason_code == "malformed"

    def test_every_truncation_and_every_changed_character_is_refused(self, store):
        text, _ = store.create("t", [])
        spoiled = [text[:end] for end in range(len(text))] + [text + "A", " " + text]
        spoiled += [text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :] for at in range(len(text))]
        for wrong in spoiled:
            with pytest.raises(CredentialsInvalid):
                store.authenticate(wrong)

    @given(st.text(max_size=100))
    def test_no_text_breaks_it(self, tmp_path_factory, text):
        store = TokenStore(tmp_path_factory.getbasetemp() / "none.json", Clock(), os.urandom)
        with pytest.raises(CredentialsInvalid):
            store.authenticate(text)

    def test_base64_spellings_of_the_same_bytes_are_not_the_same_token(self, store):
        text, _ = store.create("t", [])
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        for letter in set(alphabet) - {text[-1]}:
            with pytest.raises(CredentialsInvalid):
                store.authenticate(text[:-1] + letter)

    def test_a_secret_of_another_token_is_refused_like_an_unknown_id(self, store):
        one, _ = store.create("one", [])
        other, _ = store.create("other", [])
        for wrong in (one[:19] + other[19:], "sprawl_" + "a" * 12 + one[19:]):
            with pytest.raises(CredentialsInvalid) as refused:
                store.authenticate(wrong)
            assert refused.value.reason_code == "unknown"

    def test_a_wrong_secret_and_an_unknown_id_cost_the_same_constant_time_compare(self, store, monkeypatch):
        text, _ = store.create("t", [])
        compared = []

        def spy(one, other):
            compared.append((len(one), len(other)))
            return original(one, other)

        original = hmac.compare_digest
        monkeypatch.setattr(hmac, "compare_digest", spy)
        store.authenticate(text)
        for wrong in (text[:-9] + "A" * 9, "sprawl_" + "a" * 12 + text[19:]):
            with pytest.raises(CredentialsInvalid):
                store.authenticate(wrong)
        assert compared == [(32, 32)] * 3

    def test_it_expires_at_its_time_and_not_before(self, store, clock):
        text, record = store.create("t", [], ttl_ms=1_000)
        clock.ms += 999
        principal = store.authenticate(text)
        clock.ms += 1
        for ask in (lambda: store.authenticate(text), lambda: store.still_valid(principal)):
            with pytest.raises(TokenExpired) as refused:
                ask()
            assert (refused.value.token_id, refused.value.expired_at_ms) == (record.id, clock.ms)

    def test_only_who_has_the_secret_learns_that_a_token_was_revoked(self, store):
        text, record = store.create("t", [])
        store.revoke(record.id)
        with pytest.raises(TokenRevoked):
            store.authenticate(text)
        with pytest.raises(CredentialsInvalid):
            store.authenticate(text[:-9] + "A" * 9)


class TestRevoke:
    def test_it_takes_hold_at_once_and_for_ever(self, store, open_store, clock):
        text, record = store.create("t", [])
        principal = store.authenticate(text)
        revoked = store.revoke(record.id)
        assert revoked == msgspec.structs.replace(record, revoked_at_ms=clock.ms)
        clock.ms += 5
        assert store.revoke(record.id) == revoked
        for ask in (
            lambda: store.authenticate(text),
            lambda: open_store().authenticate(text),
            lambda: store.still_valid(principal),
        ):
            with pytest.raises(TokenRevoked):
                ask()

    @pytest.mark.parametrize("token_id", ["", "a" * 12, "../../etc/passwd", "sprawl_" + "a" * 12 + "_" + "S" * 43])
    def test_an_id_that_is_none_is_said_and_a_whole_token_is_not_repeated(self, store, token_id):
        with pytest.raises(TokenUnknown) as unknown:
            store.revoke(token_id)
        assert "SSS" not in str(unknown.value)


class Tokens:
    """The store, as its contract asks for it. The dead are listed until their place is needed."""

    damaged, full, bound = TokenStoreDamaged, TokenStoreFull, "tokens_max"

    def __init__(self, folder, clock):
        self.path, self._clock = folder / "tokens.json", clock
        self._made = {}

    def open(self, **options):
        return TokenStore(self.path, self._clock, os.urandom, **options)

    def add(self, store, name):
        self._made[name] = store.create(name, [])

    def remove(self, store, name):
        store.revoke(self._made[name][1].id)

    def names(self, store):
        return {record.name for record in store.list() if record.revoked_at_ms is None}

    async def prove(self, store, name):
        return await TokenProvider(store).authenticate(BearerToken(self._made[name][0]))

    def still_valid(self, store, principal):
        TokenProvider(store).still_valid(principal)


class TestSharedStore(SharedStoreContract):
    @pytest.fixture
    def subject(self, tmp_path, clock):
        return Tokens(tmp_path, clock)

    def test_the_admin_token_does_not_take_the_place_of_damage(self, subject, filled):
        spoil_file(subject.path, "empty")
        with pytest.raises(TokenStoreDamaged):
            bootstrap_admin(filled)

    def test_rights_changed_in_the_file_end_what_was_granted_before(self, store):
        text, _ = store.create("t", ["publisher"])
        principal = store.authenticate(text)
        body = store._file.read()
        kept = body.tokens[0]
        stripped = msgspec.structs.replace(kept, record=msgspec.structs.replace(kept.record, roles=()))
        store._file.write(msgspec.structs.replace(body, tokens=(stripped,)))
        store.reload_if_changed()
        with pytest.raises(CredentialsInvalid) as refused:
            store.still_valid(principal)
        assert refused.value.reason_code == "changed"


class TestBootstrap:
    def test_the_admin_token_is_made_once_in_a_life(self, store, open_store):
        text = bootstrap_admin(store)
        principal = store.authenticate(text)
        assert principal.roles == {"admin"}
        assert principal.scopes is None
        assert bootstrap_admin(store) is None
        assert bootstrap_admin(open_store()) is None

    def test_a_revoked_or_forgotten_one_is_not_replaced_by_itself(self, open_store):
        store = open_store(tokens_max=1)
        text = bootstrap_admin(store)
        store.revoke(store.authenticate(text).credential_id)
        assert bootstrap_admin(open_store()) is None
        store.create("in its place", [])
        assert [record.name for record in store.list()] == ["in its place"]
        assert bootstrap_admin(open_store()) is None

    def test_a_token_for_less_does_not_count_and_another_admin_does(self, store):
        store.create("device", ["publisher"])
        store.create("half an admin", ["admin"], [READ_ORDERS])
        assert bootstrap_admin(store) is not None

    def test_an_admin_token_made_by_hand_first_is_enough(self, store):
        store.create("by hand", ["admin"])
        assert bootstrap_admin(store) is None


class TestSecrets:
    def test_they_are_nowhere_but_in_the_text_that_was_returned(self, store, path, caplog):
        with caplog.at_level(logging.DEBUG):
            text, record = store.create("t", ["admin"])
            secret = text[len("sprawl_123456789012_") :]
            principal = store.authenticate(text)
            shown = [repr(store), repr(record), str(record), repr(principal), repr(store.list()), repr(BearerToken(text))]
            for wrong in (text[:-1], text[:-9] + "A" * 9):
                with pytest.raises(CredentialsInvalid) as refused:
                    store.authenticate(wrong)
                shown += [str(refused.value), repr(refused.value)]
            store.revoke(record.id)
            with pytest.raises(TokenRevoked) as revoked:
                store.authenticate(text)
            shown += [str(revoked.value), repr(revoked.value), repr(store._file.read())]
        digest = msgspec.json.decode(path.read_bytes())["body"]["tokens"][0]["secret_sha256"]
        everything = "\n".join([*shown, caplog.text])
        for part in (secret, secret[:16], secret[-16:], digest, digest[:16]):
            assert part not in everything
        assert secret[:16].encode() not in path.read_bytes()
        assert "secret" not in msgspec.json.encode(record).decode()


class TestProvider:
    async def test_it_knows_tokens_of_this_make(self, store):
        provider = TokenProvider(store)
        text, _ = store.create("t", [])
        assert provider.recognises(BearerToken(text))
        assert provider.recognises(BearerToken("sprawl_spoiled"))
        for other in (BearerToken("eyJhbGciOiJub25lIn0.e30."), ClientCertificate(b""), NoCredential()):
            assert not provider.recognises(other)
        principal = await provider.authenticate(BearerToken(text))
        assert principal.proved_by == provider.proves
        provider.still_valid(principal)
        store.revoke(principal.credential_id)
        with pytest.raises(TokenRevoked):
            provider.still_valid(principal)

    async def test_it_refuses_what_it_was_not_made_for(self, store):
        with pytest.raises(CredentialsInvalid):
            await TokenProvider(store).authenticate(ClientCertificate(b""))
