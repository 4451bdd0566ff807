"""Users: made, changed and deleted from anywhere, proved by SCRAM, judged again while they are connected."""

import os

import pytest

from security.errors import CredentialsInvalid
from security.files import replace_file
from security.identity.chain import BearerToken, Chain
from security.identity.scram import ITERATIONS_MAX, ITERATIONS_MIN, ScramProof, secret_of, version_of
from security.identity.shared_store import STALE_MS_MAX
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

PASSWORD = "correct horse"
SHA256, SHA512 = "SCRAM-SHA-256", "SCRAM-SHA-512"


class Clock:
    ms = 1_800_000_000_000

    def __call__(self):
        return self.ms


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "users.json"


@pytest.fixture
def open_store(path, clock):
    """Opens the store once more, as another process would."""
    return lambda **options: UserStore(path, clock, os.urandom, **options)


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


def test_another_process_sees_what_was_changed(store, open_store, path):
    other = open_store()
    store.create("alice", [], PASSWORD)
    assert other.find("alice") is None
    assert other.reload_if_changed()
    assert other.find("alice") == store.find("alice")
    assert path.stat().st_mode & 0o777 == 0o600
    assert PASSWORD.encode() not in path.read_bytes()


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


def test_the_bound_on_users(open_store):
    store = open_store(users_max=2)
    for name in ("a", "b"):
        store.create(name, [], PASSWORD)
    with pytest.raises(UserStoreFull, match="users_max = 2"):
        store.create("c", [], PASSWORD)
    store.set_password("b", "another horse")
    store.delete("a")
    store.create("c", [], PASSWORD)


def test_names_that_are_taken_or_unknown(store):
    store.create("alice", [], PASSWORD)
    with pytest.raises(UserExists, match="sprawl users password alice"):
        store.create("alice", [], PASSWORD)
    for change in (lambda: store.set_password("bob", PASSWORD), lambda: store.delete("bob")):
        with pytest.raises(UserUnknown):
            change()


async def test_a_damaged_file_is_trusted_for_a_while_and_then_nobody_is(store, path, clock):
    store.create("alice", [], PASSWORD)
    provider = UserProvider(store)
    principal = await provider.authenticate(proof(store))
    replace_file(path, path.read_bytes()[:-9], 0o600)
    with pytest.raises(UserStoreDamaged):
        store.reload_if_changed()
    provider.still_valid(principal)
    clock.ms += STALE_MS_MAX
    with pytest.raises(UserStoreDamaged):
        provider.still_valid(principal)


def test_the_key_of_decoys_lasts_from_the_first_user_on(store, open_store):
    before = store.decoy_key
    assert open_store().decoy_key != before
    store.create("alice", [], PASSWORD)
    store.delete("alice")
    assert store.decoy_key == open_store().decoy_key == before
    assert before.hex() not in repr(store._state.body)
