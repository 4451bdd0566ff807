"""What a node is told: defaults < TOML file < `SPRAWL_SECTION_KEY` environment variables < flags.

Every setting has one dotted name (`limits.connections_max`), used alike in the file (`[limits]`, `connections_max = 100`), in the
environment (`SPRAWL_LIMITS_CONNECTIONS_MAX`) and in refusals. `load` reads, `dump` prints, `gateway/settings.py` lists them. No
setting is a secret: secrets live in files of mode 0600, the settings name the folders that hold them.

    ConfigProblem
    ├── ConfigUnreadable    no such file, not allowed to read it, or no TOML
    ├── UnknownSetting      nothing has this name; `nearest` has a similar one
    ├── WrongSetting        the value has the wrong type, or is out of its range
    └── VariableMissing     `${NAME}` in the file, and no such environment variable
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from broker.delivery.consumer_options import DeliveryOptions
from broker.delivery.shared_scan import SharedScanOptions
from broker.groups.group_options import GroupOptions
from broker.idempotency_options import IdempotencyOptions
from broker.log.options import LogOptions
from broker.producers.options import ProducerOptions
from broker.transactions.options import TransactionOptions
from gateway.settings import (
    BrokerSection,
    Count,
    FailedLoginsSection,
    KafkaSection,
    LimitsSection,
    ListenersSection,
    LoggingSection,
    NodeSection,
    PipelineSection,
    PolicySection,
    QuotasSection,
    RestSection,
    SseSection,
    TlsSection,
    TokensSection,
    UsersSection,
    WebSocketSection,
)
from security.policy.mapping import roles_and_bindings

ENVIRONMENT_PREFIX = "SPRAWL_"
FILE_NAME = "sprawl.toml"
# What the command line reads for itself (`gateway/cli/options.py`); everything else with the prefix must be a setting.
CLIENT_VARIABLES = frozenset({"SPRAWL_HOME", "SPRAWL_URL", "SPRAWL_CA", "SPRAWL_TOKEN", "SPRAWL_CONFIG"})
CONFIG_BYTES_MAX = 1024 * 1024
_REFERENCE = re.compile(r"\$(\$?)\{([A-Za-z_][A-Za-z0-9_]*)\}")


class ConfigProblem(Exception):
    """The node cannot be configured as told; the message says where and what to write instead."""


class ConfigUnreadable(ConfigProblem):
    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"the configuration file {path} cannot be read: {reason}")


class UnknownSetting(ConfigProblem):
    def __init__(self, name: str, origin: str, nearest: str | None) -> None:
        self.name, self.origin, self.nearest = name, origin, nearest
        advice = f"did you mean {nearest}?" if nearest else "`sprawl serve --print-config` lists all settings"
        super().__init__(f"{origin}: there is no setting {name}; {advice}")


class WrongSetting(ConfigProblem):
    def __init__(self, name: str, origin: str, reason: str) -> None:
        self.name, self.origin, self.reason = name, origin, reason
        super().__init__(f"{origin}: {name}: {reason}")


class VariableMissing(ConfigProblem):
    def __init__(self, variable: str, name: str, origin: str) -> None:
        self.variable, self.name, self.origin = variable, name, origin
        super().__init__(f"{origin}: {name} refers to ${{{variable}}}, which is not set; set it, or write $${{...}} for the text")


class Origin(msgspec.Struct, frozen=True):
    """Where a value came from, in words; `reference` is the file's text where that held `${...}`: it is what gets printed."""

    text: str
    reference: Any = msgspec.UNSET


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All sections. `origins` has an entry for each setting that is not a default."""

    node: NodeSection = NodeSection()
    logging: LoggingSection = LoggingSection()
    log: LogOptions = LogOptions()
    broker: BrokerSection = BrokerSection()
    pipeline: PipelineSection = PipelineSection()
    delivery: DeliveryOptions = DeliveryOptions()
    shared_scan: SharedScanOptions = SharedScanOptions()
    idempotency: IdempotencyOptions = IdempotencyOptions()
    producers: ProducerOptions = ProducerOptions()
    transactions: TransactionOptions = TransactionOptions()
    groups: GroupOptions = GroupOptions()
    listeners: ListenersSection = ListenersSection()
    tls: TlsSection = TlsSection()
    rest: RestSection = RestSection()
    sse: SseSection = SseSection()
    websocket: WebSocketSection = WebSocketSection()
    kafka: KafkaSection = KafkaSection()
    limits: LimitsSection = LimitsSection()
    policy: PolicySection = PolicySection()
    tokens: TokensSection = TokensSection()
    users: UsersSection = UsersSection()
    failed_logins: FailedLoginsSection = FailedLoginsSection()
    quotas: QuotasSection = QuotasSection()
    origins: Mapping[str, Origin] = {}


@cache
def settings() -> Mapping[str, Any]:
    """Dotted name -> type of every setting, in the order of the sections. A number without a range of its own is at least 1."""
    return dict(_settings_of(Config, ""))


def _settings_of(section: type, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, kind in get_type_hints(section, include_extras=True).items():
        if f"{prefix}{name}" == "origins":
            continue
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            yield from _settings_of(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", Count if kind is int else kind


def variable_of(name: str) -> str:
    """`limits.connections_max` -> `SPRAWL_LIMITS_CONNECTIONS_MAX`."""
    return ENVIRONMENT_PREFIX + name.replace(".", "_").upper()


def load(file: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Config:
    """The configuration that these make together; `flags` maps dotted names to values, None meaning not given.

    Without `file`, `<home>/sprawl.toml` is read where it exists. Raises `ConfigProblem`, and
    `security.policy.mapping.PolicyInvalid` for roles and bindings that cannot be.
    """
    above = _from_environment(environ) | _from_flags(flags)
    path = file or _file_at_home(above)
    merged = (_from_file(path, environ) if path else {}) | above
    values = {name: value for name, (value, _) in merged.items()}
    origins = {name: origin for name, (_, origin) in merged.items()}
    config: Config = _build(Config, "", values, origins)
    roles_and_bindings({"roles": config.policy.roles, "bindings": config.policy.bindings})
    return msgspec.structs.replace(config, origins=origins)


Given = dict[str, tuple[Any, Origin]]


def _from_flags(flags: Mapping[str, object]) -> Given:
    given: Given = {}
    for name, value in flags.items():
        if value is not None:
            origin = Origin("flag")
            given[name] = (_converted(name, value, origin, strict=False), origin)
    return given


def _from_environment(environ: Mapping[str, str]) -> Given:
    names = {variable_of(name): name for name in settings()}
    given: Given = {}
    for variable, text in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in CLIENT_VARIABLES:
            continue
        if variable not in names:
            raise UnknownSetting(variable, "environment", _nearest(variable, names))
        origin = Origin(f"environment {variable}")
        given[names[variable]] = (_converted(names[variable], text, origin, strict=False), origin)
    return given


def _file_at_home(above: Given) -> Path | None:
    home = above["node.home"][0] if "node.home" in above else NodeSection().home
    path = Path(home) / FILE_NAME
    return path if path.exists() else None


def _from_file(path: Path, environ: Mapping[str, str]) -> Given:
    given: Given = {}
    for name, raw in _flattened(_parsed(path), "", str(path)):
        origin = Origin(str(path))
        try:
            value = _resolved(raw, environ, name, origin)
        except RecursionError:
            raise WrongSetting(name, origin.text, "it is nested too deeply") from None
        if value != raw:
            origin = Origin(str(path), raw)
        given[name] = (_converted(name, value, origin, strict=value == raw), origin)
    return given


def _parsed(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigUnreadable(path, str(error.strerror)) from None
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigUnreadable(path, f"it has more than {CONFIG_BYTES_MAX} bytes")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigUnreadable(path, f"byte {error.start} is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigUnreadable(path, f"it is no TOML: {error}") from None
    except RecursionError:
        raise ConfigUnreadable(path, "it is nested too deeply") from None


def _flattened(table: Mapping[str, Any], prefix: str, origin: str) -> Iterator[tuple[str, Any]]:
    """Settings of a parsed file; tables below a setting (`policy.roles`) are its value."""
    sections = {known.rsplit(".", 1)[0] for known in settings()} | {"listeners"}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if name in settings():
            yield name, value
        elif name not in sections:
            raise UnknownSetting(name, origin, _nearest(name, [*settings(), *sections]))
        elif not isinstance(value, dict):
            raise WrongSetting(name, origin, f"this is a section: write [{name}] and its settings below")
        else:
            yield from _flattened(value, f"{name}.", origin)


def _resolved(value: Any, environ: Mapping[str, str], name: str, origin: Origin) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(inner, environ, name, origin) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, environ, name, origin) for inner in value]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match[str]) -> str:
        escaped, variable = match.groups()
        if escaped:
            return match.group()[1:]
        if variable not in environ:
            raise VariableMissing(variable, name, origin.text)
        return environ[variable]

    return _REFERENCE.sub(replacement, value)


def _converted(name: str, value: object, origin: Origin, *, strict: bool) -> Any:
    """`value` as the setting's type; not strict reads numbers and booleans, and JSON for tables and lists, out of text."""
    kind = settings().get(name)
    if kind is None:
        raise UnknownSetting(name, origin.text, _nearest(name, settings()))
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise WrongSetting(name, origin.text, f"{value!r} is not one of {', '.join(get_args(kind))}")
    try:
        if not strict and isinstance(value, str) and get_origin(kind) in (dict, list, tuple):
            return msgspec.json.decode(value, type=kind)
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.MsgspecError as error:
        raise WrongSetting(name, origin.text, _in_words(str(error))) from None
    except RecursionError:
        raise WrongSetting(name, origin.text, "it is nested too deeply") from None


def _in_words(reason: str) -> str:
    return reason.replace("`", "").replace("Expected", "expected", 1)


def _build(section: Any, prefix: str, values: Mapping[str, Any], origins: Mapping[str, Origin]) -> Any:
    given = {}
    for name, kind in get_type_hints(section).items():
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            given[name] = _build(kind, f"{prefix}{name}.", values, origins)
        elif f"{prefix}{name}" in values:
            given[name] = values[f"{prefix}{name}"]
    try:
        return section(**given)
    except ValueError as error:
        told = sorted({origins[f"{prefix}{name}"].text for name in given if f"{prefix}{name}" in origins})
        raise WrongSetting(prefix.rstrip("."), ", ".join(told), str(error)) from None


def _nearest(name: str, known: Collection[str]) -> str | None:
    """By the whole name, else by its last part: right key, wrong section."""
    if close := difflib.get_close_matches(name, known, 1, cutoff=0.75):
        return close[0]
    key = name.rpartition(".")[2]
    return next((candidate for candidate in known if candidate.rpartition(".")[2] == key), None)


def dump(config: Config) -> str:
    """The whole configuration as TOML that `load` reads back; a comment tells where each value came from.

    A value the file took from `${NAME}` is printed as that reference, so that what the environment held does not get out.
    """
    lines: list[str] = []
    section = None
    for name in settings():
        parent, _, key = name.rpartition(".")
        if parent != section:
            lines += ["", f"[{parent}]"] if section else [f"[{parent}]"]
            section = parent
        origin = config.origins.get(name, Origin("default"))
        value = _value_of(config, name) if origin.reference is msgspec.UNSET else origin.reference
        text = _toml(value, escape=origin.reference is msgspec.UNSET)
        lines.append(f"{key} = {text}  # {_one_line(origin.text)}")
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _value_of(config: Config, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _toml(value: Any, *, escape: bool) -> str:
    """`escape` doubles the dollar of a literal `${...}`."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            text = _REFERENCE.sub(lambda match: f"${match.group()}", value) if escape else value
            return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(_toml(inner, escape=escape) for inner in value)}]"
        case dict():
            pairs = (f"{_toml(str(key), escape=False)} = {_toml(inner, escape=escape)}" for key, inner in value.items())
            return "{" + ", ".join(pairs) + "}"
        case _:
            return str(value)
