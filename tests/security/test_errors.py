from pathlib import Path

import pytest

from security import errors

TOPIC = bytes(range(16))
PATH = Path("/node/keys.json")

EXAMPLES = [
    (errors.KeyMissing("keys.json", "kek-1", "bring it back"), ["keys.json", "the key kek-1", "bring it back"]),
    (errors.KeyMissing("keys.json", None, "bring it back"), ["any key", "bring it back"]),
    (errors.KeyWrong("kek-1", "the key store"), ["kek-1", "the key store", "bring back the key file"]),
    (errors.KeyFilePermissions(PATH, 0o644), [str(PATH), "0644", "chmod 600"]),
    (errors.KeyFileExists(PATH), [str(PATH), "load it"]),
    (errors.KeyFileBusy(PATH), [str(PATH), "try again"]),
    (errors.KeyFileDamaged(PATH, "it is empty"), [str(PATH), "it is empty", "backup"]),
    (errors.KeyFormatUnsupported("the key store", 2, 1), ["version 2", "up to 1", "newer build"]),
    (errors.KeyShredded(TOPIC), [TOPIC.hex(), "key backup"]),
    (errors.KeyStoreExists(), ["load it"]),
    (errors.KeyStoreDamaged("it has 3 bytes"), ["it has 3 bytes", "bring it back"]),
    (errors.NonceExhausted(TOPIC, 0xABC, 5), ["00000abc", TOPIC.hex(), "5 times", "new epoch"]),
    (errors.TamperedData("a footer"), ["a footer", "do not use it"]),
    (errors.CredentialsMissing(), ["bearer token"]),
    (errors.CredentialsInvalid("unknown"), ["(unknown)", "ask for new ones"]),
    (errors.TokenExpired("tok-1", 1_700_000_000_000), ["tok-1", "2023-11-14T22:13:20+00:00", "new one"]),
    (errors.TokenRevoked("tok-1"), ["tok-1", "new one"]),
    (errors.CertificateRefused("it expired"), ["it expired", "this node's CA"]),
    (errors.LoginsThrottled(4_100), ["4100 ms", "wrong password"]),
    (errors.AccessDenied("alice", "write", "topic orders", "no rule allows it"), ["alice", "write", "topic orders", "no rule"]),
    (errors.QuotaExceeded("alice", "publish_bytes", 250), ["alice", "publish_bytes", "250 ms"]),
    (errors.CertificateProblem(PATH, "it is missing"), [str(PATH), "it is missing", "move the folder away"]),
]


@pytest.mark.parametrize(("error", "parts"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_message_carries_the_facts_and_what_to_do(error, parts):
    for part in parts:
        assert part in str(error)


def leaves(kind=errors.SecurityError):
    below = [kind for kind in kind.__subclasses__() if kind.__module__ == errors.__name__]
    return {leaf for child in below for leaf in leaves(child)} or {kind}


def test_every_error_has_an_example_and_stands_in_the_drawn_tree():
    assert {type(error) for error, _ in EXAMPLES} == leaves()
    for leaf in leaves():
        assert f"─ {leaf.__name__}" in errors.__doc__


@pytest.mark.parametrize("family", [errors.KeyProblem, errors.IdentityProblem])
def test_drawn_tree_is_the_tree(family):
    drawn = errors.__doc__.partition(f"─ {family.__name__}")[2]
    branch = drawn.splitlines()[1 : len(leaves(family)) + 1]
    assert {line.split("─ ")[1].split()[0] for line in branch} == {leaf.__name__ for leaf in leaves(family)}
    assert all(line.startswith("    │   ") for line in branch)


def test_errors_can_be_raised_chained_and_hashed():
    with pytest.raises(errors.KeyProblem) as caught:
        raise errors.KeyWrong("kek-1", "a wrapped key") from ValueError("cause")
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value in {caught.value}
