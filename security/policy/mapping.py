"""Roles and bindings from configuration: `{"roles": {name: [rule, ...]}, "bindings": [binding, ...]}`.

    [[policy.roles.eu-writer]]
    actions = ["publish"]            # or "*": every action that fits the patterns
    topic = "orders*"
    key = "eu/*"                     # optional; publish and read only
    effect = "allow"                 # the default; or "deny", which wins

    [[policy.bindings]]
    role = "eu-writer"
    principals = ["cert:eu-*"]       # and / or
    groups = ["shop/eu"]

The built-in roles are always there and cannot be redefined. `rbac.policy_from_mapping` makes the policy of what is read here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from security.errors import SecurityError
from security.policy.model import BUILT_IN_ROLES, Binding, Role, Rule, parse_actions

_BUILT_IN = frozenset(role.name for role in BUILT_IN_ROLES)


@dataclass(eq=False)
class PolicyInvalid(SecurityError):
    """The configured policy cannot be used. `where` is the path of the wrong key, like `policy.roles.eu-writer[0].topic`."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def roles_and_bindings(mapping: Mapping[str, object], where: str = "policy") -> tuple[list[Role], list[Binding]]:
    """The configured roles, without the built-in ones, and bindings. Raises `PolicyInvalid` naming the wrong key."""
    _only_keys(mapping, ("roles", "bindings"), where)
    roles_table = _table(mapping.get("roles", {}), f"{where}.roles")
    roles = [_role(name, rules, f"{where}.roles.{name}") for name, rules in roles_table.items()]
    known = _BUILT_IN | {role.name for role in roles}
    listed = _list(mapping.get("bindings", []), f"{where}.bindings")
    bindings = [_binding(entry, known, f"{where}.bindings[{n}]") for n, entry in enumerate(listed)]
    return roles, bindings


def _role(name: str, rules: object, where: str) -> Role:
    if name in _BUILT_IN:
        raise PolicyInvalid(where, "this role is built in: choose another name")
    made = tuple(_rule(entry, f"{where}[{n}]") for n, entry in enumerate(_list(rules, where)))
    try:
        return Role(name, made)
    except ValueError as problem:
        raise PolicyInvalid(where, str(problem)) from None


def _rule(entry: object, where: str) -> Rule:
    table = _table(entry, where)
    _only_keys(table, ("effect", "actions", "topic", "key"), where)
    topic = _text(_required(table, "topic", where), f"{where}.topic")
    key = _text(table["key"], f"{where}.key") if "key" in table else None
    actions = _required(table, "actions", where)
    names = [actions] if isinstance(actions, str) else _texts(actions, f"{where}.actions")
    effect = _effect(table.get("effect", "allow"), f"{where}.effect")
    try:
        return Rule(effect, parse_actions(names, topic, key), topic, key)
    except ValueError as problem:
        raise PolicyInvalid(where, str(problem)) from None


def _effect(value: object, where: str) -> Literal["allow", "deny"]:
    if value == "allow":
        return "allow"
    if value == "deny":
        return "deny"
    raise PolicyInvalid(where, f"{value!r} is neither 'allow' nor 'deny'")


def _binding(entry: object, known: frozenset[str], where: str) -> Binding:
    table = _table(entry, where)
    _only_keys(table, ("role", "principals", "groups"), where)
    role = _text(_required(table, "role", where), f"{where}.role")
    if role not in known:
        raise PolicyInvalid(f"{where}.role", f"there is no role {role!r}{_nearest(role, sorted(known))}")
    principals = _texts(table.get("principals", []), f"{where}.principals")
    groups = _texts(table.get("groups", []), f"{where}.groups")
    try:
        return Binding(role, tuple(principals), tuple(groups))
    except ValueError as problem:
        raise PolicyInvalid(where, str(problem)) from None


def _only_keys(table: Mapping[str, object], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise PolicyInvalid(f"{where}.{key}", f"unknown key{_nearest(str(key), known)}")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f": did you mean {near[0]!r}?" if near else f": choose from {', '.join(known)}"


def _required(table: Mapping[str, object], key: str, where: str) -> object:
    if key not in table:
        raise PolicyInvalid(where, f"the key {key!r} is missing")
    return table[key]


def _table(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise PolicyInvalid(where, f"a table is expected, not {_kind(value)}")
    return value


def _list(value: object, where: str) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        raise PolicyInvalid(where, f"a list is expected, not {_kind(value)}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise PolicyInvalid(where, f"text is expected, not {_kind(value)}")
    return value


def _texts(value: object, where: str) -> list[str]:
    return [_text(entry, f"{where}[{n}]") for n, entry in enumerate(_list(value, where))]


def _kind(value: object) -> str:
    return {"str": "text", "dict": "a table", "list": "a list"}.get(type(value).__name__, type(value).__name__)
