"""Fuzz target: the bytes of a configuration file. What loads is printed and loads again as the same."""

from __future__ import annotations

import atexit
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from gateway.config import Config, ConfigProblem, dump, load
from security.policy.mapping import PolicyInvalid
from tests.fuzz.refusals import check_refusal
from tests.fuzz.run import INPUT_BYTES_MAX

_FOLDER = TemporaryDirectory()
atexit.register(_FOLDER.cleanup)
_FILE, _PRINTED = Path(_FOLDER.name) / "sprawl.toml", Path(_FOLDER.name) / "printed.toml"
_ENVIRONMENT = {"NAME": "orders", "NUMBER": "42"}

CORPUS = [
    dump(Config()).encode(),
    b'[node]\nhome = "/tmp/${NAME}"\n[logging]\nlevel = "debug"\n',
    b"[limits]\nconnections_max = 100\n[rest]\nrecords_max = 5\n",
    b'[policy.roles.reader]\nallow = ["read:orders"]\n[policy.bindings]\nann = ["reader"]\n',
    b'[node]\nhome = "\\u0000"\n',
    b'[limits]\nconnections_max = "${NUMBER}"\n',
    b"[policy.roles]\n" + b"a." * 3000 + b"a = 1\n",
    b"a = " + b"[" * 500 + b"]" * 500,
    b'{"a":' * 2500 + b"1" + b"}" * 2500,
    b'{"reader":{"allow":["read:orders"]}}',
    b"[log]\njournal_file_bytes = 1e400\n",
    b"[quotas]\nx = 2026-11-23T13:00:00Z\n",
]


def one_input(data: bytes) -> None:
    """As the file; and as variables of the environment that hold JSON."""
    _as_variables(data)
    _FILE.write_bytes(data)
    try:
        config = load(_FILE, _ENVIRONMENT, {})
    except (ConfigProblem, PolicyInvalid) as error:
        check_refusal(error, INPUT_BYTES_MAX)
        return
    _PRINTED.write_text(dump(config), encoding="utf-8")
    again = load(_PRINTED, _ENVIRONMENT, {})
    assert msgspec.structs.replace(again, origins={}) == msgspec.structs.replace(config, origins={}), "printed as another one"


def _as_variables(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for variable in ("SPRAWL_POLICY_ROLES", "SPRAWL_POLICY_BINDINGS", "SPRAWL_LIMITS_CONNECTIONS_MAX"):
        try:
            load(None, {variable: text, "SPRAWL_NODE_HOME": _FOLDER.name + "/none"}, {})
        except (ConfigProblem, PolicyInvalid) as error:
            check_refusal(error, 2 * INPUT_BYTES_MAX)
