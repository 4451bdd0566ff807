"""Users: made, changed and deleted from anywhere, proved by SCRAM, judged again while they are connected."""

import os

import pytest

from security.errors import CredentialsInvalid
from security.identity import users
from security.identity.chain import BearerToken, Chain
from security.identity.scram import ITERATIONS_MAX, ITERATIONS_MIN, ScramProof, secret_of, version_of
from security.identity.users import (
    PASSWORD_CHARS_MAX,
    PASSWORD_CHARS_MIN,
    ROLES_PER_USER_MAX,
    UserExists,
    UserProvider,
    UserStore,
    UserStoreDamaged,
    UserStoreFull,
    UserUnknown,
)
from security.principal import PrincipalKind
from tests.contracts.shared_store_contract import Clock, SharedStoreContract

PASSWORD = "correct horse"
SHA256, SHA512 = "SCRAM-SHA-256", "SCRAM-SHA-512"


class Users:
    """The store, as its contract asks for it."""

    damaged, full, bound = UserStoreDamaged, UserStoreFull, "users_max"

    def __init__(self, folder, clock):
        self.path, self._clock = folder / "users.json", clock

    def open(self, **options):
        return UserStore(self.path, self._clock, os.urandom, **options)

    def add(self, store, name):
        store.create(name, [], PASSWORD)

    def remove(self, store, name):
        store.delete(name)

    def names(self, store):
        return {record.name for record, _ in store.list()}

    async def prove(self, store, name):
        secret = store.secret(SHA256, name)
        return await UserProvider(store).authenticate(
            ScramProof(SHA256, name, proved=secret is not None, version=version_of(secret) if secret else "")
        )

    def still_valid(self, store, principal):
        UserProvider(store).still_valid(principal)


class TestSharedStore(SharedStoreContract):
    @pytest.fixture
    def subject(self, tmp_path, clock, monkeypatch):
        quick = {"iterations": ITERATIONS_MIN}
        monkeypatch.setattr(users, "secret_of", lambda mechanism, password, salt: secret_of(mechanism, password, salt, **quick))
        return Users(tmp_path, clock)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "users.json"


@pytest.fixture
def open_store(path):
    """Opens the store once more, as another process would."""
    return lambda **options: UserStore(path, Clock(), os.urandom, **options)


@pytest.fixture
def store(open_store):
    return open_store()


def proof(store, name="alice", mechanism=SHA256):
    return ScramProof(mechanism, name, proved=True, version=version_of(store.secret(mechanism, name)))


async def test_a_user_is_a_principal_with_its_roles(store):
    store.create("alice", ["publisher", "publisher"], PASSWORD)
    principal = await UserProvider(store).authenticate(proof(store))
    assert (principal.name, principal.kind, principal.proved_by) == ("user:alice", PrincipalKind.USER, "scram")
    assert principal.roles == {"publisher"}
    assert store.list() == [(store.find("alice"), {SHA256: 8192, SHA512: 8192})]


async def test_a_chain_knows_proofs_and_nothing_else_of_it(store):
    store.create("alice", [], PASSWORD)
    chain = Chain([UserProvider(store)])
    assert (await chain.authenticate(proof(store))).name == "user:alice"
    with pytest.raises(CredentialsInvalid):
        await chain.authenticate(BearerToken("alice"))
    with pytest.raises(CredentialsInvalid):
        await chain.authenticate(ScramProof(SHA256, "alice", proved=False))


async def test_whoever_has_another_password_is_out(store):
    store.create("alice", [], PASSWORD)
    provider = UserProvider(store)
    old = proof(store)
    principal = await provider.authenticate(old)
    provider.still_valid(principal)
    store.set_password("alice", "another horse")
    with pytest.raises(CredentialsInvalid):
        provider.still_valid(principal)
    with pytest.raises(CredentialsInvalid):
        await provider.authenticate(old)


async def test_whoever_is_deleted_is_out_and_the_next_of_that_name_is_another(store):
    provider = UserProvider(store)
    store.create("alice", [], PASSWORD)
    principal = await provider.authenticate(proof(store))
    store.delete("alice")
    with pytest.raises(CredentialsInvalid):
        provider.still_valid(principal)
    store.create("alice", [], PASSWORD)
    with pytest.raises(CredentialsInvalid):
        provider.still_valid(principal)


def test_secrets_of_one_mechanism(store):
    secret = secret_of(SHA512, PASSWORD, b"salt", ITERATIONS_MIN)
    store.put_secret("bob", SHA512, secret)
    assert store.list() == [(store.find("bob"), {SHA512: ITERATIONS_MIN})]
    assert store.secret(SHA256, "bob") is None
    store.put_secret("bob", SHA256, secret_of(SHA256, PASSWORD, b"salt", ITERATIONS_MIN))
    store.delete_secret("bob", SHA512)
    assert store.list() == [(store.find("bob"), {SHA256: ITERATIONS_MIN})]
    with pytest.raises(UserUnknown):
        store.delete_secret("bob", SHA512)
    store.delete_secret("bob", SHA256)
    assert store.list() == []


def test_a_user_with_roles_outlives_its_last_secret(store):
    store.create("alice", ["publisher"], PASSWORD)
    store.delete_secret("alice", SHA256)
    store.delete_secret("alice", SHA512)
    assert store.list() == [(store.find("alice"), {})]


@pytest.mark.parametrize(
    ("name", "roles", "password"),
    [
        ("", [], PASSWORD),
        ("a" * 129, [], PASSWORD),
        ("a\n", [], PASSWORD),
        ("alice", ["no such form!"], PASSWORD),
        ("alice", [f"r{number}" for number in range(ROLES_PER_USER_MAX + 1)], PASSWORD),
        ("alice", [], "x" * (PASSWORD_CHARS_MIN - 1)),
        ("alice", [], "x" * (PASSWORD_CHARS_MAX + 1)),
        ("alice", [], "with\nline break"),
    ],
)
def test_what_is_out_of_its_bounds_is_refused(store, name, roles, password):
    with pytest.raises(ValueError):  # noqa: PT011  # each names its bound
        store.create(name, roles, password)
    assert store.list() == []


@pytest.mark.parametrize("iterations", [0, ITERATIONS_MIN - 1, ITERATIONS_MAX + 1])
def test_iterations_out_of_their_bounds_are_refused(store, iterations):
    secret = secret_of(SHA256, PASSWORD, b"salt", max(iterations, 1))
    with pytest.raises(ValueError, match="iterations"):
        store.put_secret("bob", SHA256, secret)
    with pytest.raises(ValueError, match="no mechanism"):
        store.put_secret("bob", "SCRAM-SHA-1", secret)


def test_names_that_are_taken_or_unknown(store):
    store.create("alice", [], PASSWORD)
    with pytest.raises(UserExists, match="sprawl users password alice"):
        store.create("alice", [], PASSWORD)
    for change in (lambda: store.set_password("bob", PASSWORD), lambda: store.delete("bob")):
        with pytest.raises(UserUnknown):
            change()


def test_a_password_is_nowhere_in_the_file(store, path):
    store.create("alice", [], PASSWORD)
    assert PASSWORD.encode() not in path.read_bytes()


def test_a_changed_password_needs_no_room(open_store):
    store = open_store(users_max=1)
    store.create("alice", [], PASSWORD)
    store.set_password("alice", "another horse")


def test_the_key_of_decoys_lasts_from_the_first_user_on(store, open_store):
    before = store.decoy_key
    assert open_store().decoy_key != before
    store.create("alice", [], PASSWORD)
    store.delete("alice")
    assert store.decoy_key == open_store().decoy_key == before
    assert before.hex() not in repr(store._state.body)
