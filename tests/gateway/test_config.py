"""What a node is told, from where, and how it answers what it does not understand."""

from __future__ import annotations

import ast
import inspect
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.broker import BrokerOptions
from gateway.config import (
    CLIENT_VARIABLES,
    CONFIG_BYTES_MAX,
    Config,
    ConfigUnreadable,
    UnknownSetting,
    VariableMissing,
    WrongSetting,
    dump,
    load,
    settings,
    variable_of,
)
from gateway.endpoints.kafka.options import KafkaOptions
from gateway.endpoints.rest_options import RestOptions, SseOptions
from gateway.endpoints.websocket_options import WebSocketOptions
from gateway.pipeline import PipelineOptions
from gateway.settings import Listener, NodeSection
from security.identity.failed_logins import FailedLoginOptions
from security.policy.mapping import PolicyInvalid


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `.sprawl/sprawl.toml` of whoever runs the tests is read."""
    monkeypatch.chdir(tmp_path)


def told(path: Path, text: str, environ: dict[str, str] | None = None, **flags: object) -> Config:
    file = path / "node.toml"
    file.write_text(text)
    return load(file, environ or {}, flags)


class TestSources:
    def test_defaults_alone_are_a_configuration(self) -> None:
        config = load(None, {}, {})
        assert config == Config()
        assert config.listeners.http.tls == "server"

    def test_file_then_environment_then_flags(self, tmp_path: Path) -> None:
        text = "[limits]\nconnections_max = 1\nhandshakes_max = 1\nheaders_max = 1\n"
        environ = {"SPRAWL_LIMITS_HANDSHAKES_MAX": "2", "SPRAWL_LIMITS_HEADERS_MAX": "2"}
        config = told(tmp_path, text, environ, **{"limits.headers_max": 3, "limits.drain_ms": None})
        limits = config.limits
        assert (limits.connections_max, limits.handshakes_max, limits.headers_max) == (1, 2, 3)
        origins = {name: origin.text for name, origin in config.origins.items()}
        assert origins == {
            "limits.connections_max": str(tmp_path / "node.toml"),
            "limits.handshakes_max": "environment SPRAWL_LIMITS_HANDSHAKES_MAX",
            "limits.headers_max": "flag",
        }

    @pytest.mark.parametrize("by", ["flag", "environment"])
    def test_the_file_of_the_home_is_read_where_there_is_one(self, by: str, tmp_path: Path) -> None:
        home = tmp_path / "home"
        home.mkdir()
        (home / "sprawl.toml").write_text('[log]\ndurability = "os"\n')
        environ = {"SPRAWL_NODE_HOME": str(home)} if by == "environment" else {}
        flags = {"node.home": str(home)} if by == "flag" else {}
        assert load(None, environ, flags).log.durability == "os"

    def test_text_becomes_what_the_setting_is(self) -> None:
        environ = {
            "SPRAWL_LISTENERS_HTTP_PORT": "9443",
            "SPRAWL_LISTENERS_HTTP_PLAIN": "true",
            "SPRAWL_QUOTAS_REQUESTS_PER_S": "12.5",
            "SPRAWL_WEBSOCKET_ORIGINS": '["https://shop.example"]',
            "SPRAWL_POLICY_BINDINGS": '[{"role": "admin", "principals": ["user:alice"]}]',
        }
        config = load(None, environ, {"limits.drain_ms": "5"})
        assert (config.listeners.http.port, config.listeners.http.plain, config.limits.drain_ms) == (9443, True, 5)
        assert config.quotas.requests_per_s == 12.5
        assert config.websocket.origins == ("https://shop.example",)
        assert config.policy.bindings == [{"role": "admin", "principals": ["user:alice"]}]

    def test_what_the_command_line_reads_for_itself_is_left_alone(self) -> None:
        assert load(None, dict.fromkeys(CLIENT_VARIABLES, "x") | {"PATH": "/bin"}, {}) == Config()

    def test_every_setting_has_a_variable_of_its_own(self) -> None:
        variables = [variable_of(name) for name in settings()]
        assert len(set(variables)) == len(variables)
        assert not CLIENT_VARIABLES & set(variables)


class TestUnknownNames:
    @pytest.mark.parametrize(
        ("text", "name", "nearest"),
        [
            ("[limits]\nconections_max = 1", "limits.conections_max", "limits.connections_max"),
            ("[limit]\nconnections_max = 1", "limit", "limits"),
            ("[listeners.http]\nprot = 1", "listeners.http.prot", "listeners.http.port"),
            ("[listeners.htpp]\nport = 1", "listeners.htpp", "listeners.http"),
            ("[rest]\nheartbeat_ms = 1", "rest.heartbeat_ms", "sse.heartbeat_ms"),
            ("durability = 'os'", "durability", "log.durability"),
            ("[node]\nzzz = 1", "node.zzz", None),
        ],
    )
    def test_in_the_file(self, text: str, name: str, nearest: str | None, tmp_path: Path) -> None:
        with pytest.raises(UnknownSetting) as refusal:
            told(tmp_path, text)
        assert (refusal.value.name, refusal.value.nearest) == (name, nearest)
        assert str(refusal.value).startswith(f"{tmp_path / 'node.toml'}: there is no setting {name}")
        assert nearest is None or f"did you mean {nearest}?" in str(refusal.value)

    def test_in_the_environment(self) -> None:
        with pytest.raises(UnknownSetting, match="did you mean SPRAWL_LOG_DURABILITY"):
            load(None, {"SPRAWL_LOG_DURABILTY": "os"}, {})

    def test_in_flags(self) -> None:
        with pytest.raises(UnknownSetting, match=r"flag: there is no setting limits\.drain; did you mean limits\.drain_ms"):
            load(None, {}, {"limits.drain": 5})


class TestWrongValues:
    @pytest.mark.parametrize(
        ("text", "name", "reason"),
        [
            ("[limits]\nconnections_max = 'many'", "limits.connections_max", "expected int, got str"),
            ("[limits]\nconnections_max = 0", "limits.connections_max", "expected int >= 1"),
            ("[log]\njournal_file_bytes = 0", "log.journal_file_bytes", "expected int >= 1"),
            ("[limits]\ndrain_ms = 86400001", "limits.drain_ms", "expected int <= 86400000"),
            ("[listeners.http]\nport = 65536", "listeners.http.port", "expected int <= 65535"),
            ("[listeners.http]\nplain = 1", "listeners.http.plain", "expected bool, got int"),
            ("[log]\ndurability = 'fsnyc'", "log.durability", "'fsnyc' is not one of fsync, os"),
            ("[log]\ndurability = []", "log.durability", "[] is not one of fsync, os"),
            ("[quotas]\nrequests_per_s = inf", "quotas.requests_per_s", "expected float <= 1000000000000000.0"),
            ("[websocket]\norigins = [1]", "websocket.origins", "expected str, got int - at $[0]"),
            ("limits = 3", "limits", "this is a section: write [limits] and its settings below"),
            ("[listeners]\nhttp = 3", "listeners.http", "this is a section: write [listeners.http] and its settings below"),
        ],
    )
    def test_are_named_with_the_file(self, text: str, name: str, reason: str, tmp_path: Path) -> None:
        with pytest.raises(WrongSetting) as refusal:
            told(tmp_path, text)
        assert str(refusal.value) == f"{tmp_path / 'node.toml'}: {name}: {reason}"

    def test_are_named_with_the_variable(self) -> None:
        with pytest.raises(WrongSetting, match=r"environment SPRAWL_LISTENERS_HTTP_PORT: listeners\.http\.port: expected int"):
            load(None, {"SPRAWL_LISTENERS_HTTP_PORT": "https"}, {})

    def test_broken_json_in_the_environment(self) -> None:
        with pytest.raises(WrongSetting, match=r"policy\.roles: JSON is malformed"):
            load(None, {"SPRAWL_POLICY_ROLES": "{eu"}, {})

    def test_half_a_certificate(self, tmp_path: Path) -> None:
        with pytest.raises(WrongSetting, match="certificate and key go together"):
            told(tmp_path, '[tls]\ncertificate = "server.pem"')

    def test_keys_inside_the_data_folder(self, tmp_path: Path) -> None:
        with pytest.raises(WrongSetting, match="lies inside the data folder"):
            told(tmp_path, '[node]\ndata = "d"\nkeys = "d/../d/keys"')

    def test_a_policy_that_cannot_be(self, tmp_path: Path) -> None:
        with pytest.raises(PolicyInvalid, match=r"policy\.bindings\[0\]\.role"):
            told(tmp_path, '[[policy.bindings]]\nrole = "admim"\nprincipals = ["user:alice"]')


class TestUnreadableFiles:
    def test_none_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigUnreadable, match=r"node\.toml cannot be read: No such file"):
            load(tmp_path / "node.toml", {}, {})

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"[limits", "it is no TOML"),
            (b"[limits]\nx = 1\nx = 2", "it is no TOML"),
            (b"# \xff", "byte 2 is not UTF-8"),
            (b"#" * (CONFIG_BYTES_MAX + 1), f"it has more than {CONFIG_BYTES_MAX} bytes"),
        ],
        ids=["cut", "twice", "not UTF-8", "too long"],
    )
    def test_not_what_it_should_be(self, data: bytes, reason: str, tmp_path: Path) -> None:
        file = tmp_path / "node.toml"
        file.write_bytes(data)
        with pytest.raises(ConfigUnreadable, match=reason):
            load(file, {}, {})

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigUnreadable, match="Is a directory"):
            load(tmp_path, {}, {})


class TestReferences:
    def test_are_taken_from_the_environment(self, tmp_path: Path) -> None:
        text = '[node]\nhome = "${BASE}/node"\n[listeners.http]\nport = "${PORT}"\n'
        text += '[[policy.bindings]]\nrole = "admin"\ngroups = ["${G}"]'
        config = told(tmp_path, text, {"BASE": "/srv", "PORT": "9443", "G": "ops"})
        assert (config.node.home, config.node.data, config.listeners.http.port) == ("/srv/node", "/srv/node/data", 9443)
        assert config.policy.bindings[0]["groups"] == ["ops"]

    def test_a_missing_one_is_named_with_its_setting(self, tmp_path: Path) -> None:
        with pytest.raises(VariableMissing) as refusal:
            told(tmp_path, '[node]\nhome = "${SPRAWL_BASE_FOLDER_X}"')
        assert (refusal.value.variable, refusal.value.name) == ("SPRAWL_BASE_FOLDER_X", "node.home")
        assert "node.home refers to ${SPRAWL_BASE_FOLDER_X}, which is not set" in str(refusal.value)

    @pytest.mark.parametrize(("text", "value"), [("$${X}", "${X}"), ("$X", "$X"), ("${}", "${}"), ("a$${X}b${Y}", "a${X}by")])
    def test_what_is_none(self, text: str, value: str, tmp_path: Path) -> None:
        assert told(tmp_path, f"[logging]\nfile = '{text}'", {"Y": "y"}).logging.file == value


class TestExposedListeners:
    @pytest.mark.parametrize("exposing", ["plain", "anonymous"])
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "node.example", "127.0.0.1.example", ""])
    def test_are_refused_off_loopback(self, exposing: str, host: str, tmp_path: Path) -> None:
        with pytest.raises(WrongSetting, match=rf"listeners\.http: {exposing} may be set on loopback only"):
            told(tmp_path, f'[listeners.http]\nhost = "{host}"\n{exposing} = true')

    @pytest.mark.parametrize("exposing", ["plain", "anonymous"])
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
    def test_are_taken_on_loopback(self, exposing: str, host: str, tmp_path: Path) -> None:
        config = told(tmp_path, f'[listeners.http]\nhost = "{host}"\n{exposing} = true')
        assert getattr(config.listeners.http, exposing) is True

    def test_plain_cannot_ask_for_client_certificates(self) -> None:
        with pytest.raises(ValueError, match="plain = true contradicts"):
            Listener(plain=True, tls="mutual")

    def test_a_listener_is_neither_by_default(self) -> None:
        assert (Listener().plain, Listener().anonymous) == (False, False)


class TestPrinting:
    def test_it_is_read_back_as_it_is(self, tmp_path: Path) -> None:
        text = '[logging]\nfile = "a\\"b$${X}"\n[websocket]\norigins = ["https://a"]\n'
        text += '[[policy.roles.eu]]\nactions = "*"\ntopic = "o*"'
        config = told(tmp_path, text)
        again = tmp_path / "again.toml"
        again.write_text(dump(config))
        assert msgspec.structs.replace(load(again, {}, {}), origins=config.origins) == config

    @given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
    def test_any_text_survives(self, text: str) -> None:
        config = Config(node=NodeSection(home="h", audit=text or "x"))
        assert tomllib.loads(dump(config))["node"]["audit"].replace("$${", "${") == (text or "x").replace("$${", "${")

    def test_each_value_has_its_origin(self, tmp_path: Path) -> None:
        printed = dump(told(tmp_path, "[limits]\ndrain_ms = 5", {"SPRAWL_LOG_DURABILITY": "os"}, **{"listeners.http.port": 0}))
        assert f"drain_ms = 5  # {tmp_path / 'node.toml'}\n" in printed
        assert 'durability = "os"  # environment SPRAWL_LOG_DURABILITY\n' in printed
        assert "port = 0  # flag\n" in printed
        assert "linger_ms = 2000  # default\n" in printed

    def test_what_a_variable_held_is_not_printed(self, tmp_path: Path) -> None:
        printed = dump(told(tmp_path, '[logging]\nfile = "${PRIVATE}"', {"PRIVATE": "hidden-in-the-environment"}))
        assert "hidden" not in printed
        assert 'file = "${PRIVATE}"' in printed

    def test_a_strange_file_name_breaks_no_line(self, tmp_path: Path) -> None:
        file = tmp_path / "a\nb.toml"
        file.write_text("[limits]\ndrain_ms = 5")
        assert tomllib.loads(dump(load(file, {}, {})))["limits"]["drain_ms"] == 5


class TestDocumentation:
    def test_every_setting_has_a_sentence(self) -> None:
        for kind in sections(Config):
            tree = ast.parse(inspect.getsource(sys.modules[kind.__module__]))
            body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
            for field, after in zip(body, [*body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    assert documented, f"{kind.__name__}.{field.target.id} says nothing"


def sections(kind: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    found = []
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            found += [field.type, *sections(field.type)]
    return found


@pytest.mark.parametrize(
    ("section", "options"),
    [
        ("broker", BrokerOptions()),
        ("pipeline", PipelineOptions()),
        ("rest", RestOptions()),
        ("sse", SseOptions()),
        ("websocket", WebSocketOptions()),
        ("kafka", KafkaOptions()),
        ("failed_logins", FailedLoginOptions()),
    ],
)
def test_settings_and_options_of_the_parts_agree(section: str, options: Any) -> None:
    """Two objects with one set of names: a refusal that names `websocket.ref_bytes_max` names something that can be set."""
    assert msgspec.structs.asdict(getattr(Config(), section)) == msgspec.structs.asdict(options)
