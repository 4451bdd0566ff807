"""What a policy is made of (`Action`, `Rule`, `Role`, `Binding`, `Scope`) and what it answers (`Decision`).

A decision has exactly three forms: *all* keys, *none*, or *some keys*. Only publish and read look at keys, so every other
action is answered with all or none.

    match engine.decide(session.principal, Action.READ, topic):
        case AllKeys(): ...                     # pass batches unopened
        case SomeKeys(matcher=matcher): ...     # open them, ask matcher(key) for each record
        case NoKeys(reason=reason): ...         # refuse

or `decision.form is Decision.ALL`. Asking a decision for truth raises: `if decision:` would let *some keys* pass as all.
"""

import re
from collections.abc import Callable, Sequence
from enum import Enum, StrEnum
from typing import ClassVar, Literal, NoReturn, TypeAlias

import msgspec

from security.policy.patterns import (
    KeySet,
    check_key_pattern,
    check_name_pattern,
    check_topic_pattern,
    matches,
)

ROLE_NAME_CHARS_MAX = 64
_ROLE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")


class Action(StrEnum):
    """What is asked for. The first six are about a topic, `group` and `transaction` about a consumer group and a transactional
    id (whose name stands where a topic's does), the last three about the node."""

    PUBLISH = "publish"
    READ = "read"
    DESCRIBE = "describe"
    CREATE = "create"
    ALTER = "alter"
    DELETE = "delete"
    GROUP = "group"
    TRANSACTION = "transaction"
    METRICS = "metrics"
    TOKENS = "tokens"
    ADMIN = "admin"


KEYED_ACTIONS = frozenset({Action.PUBLISH, Action.READ})
NODE_ACTIONS = frozenset({Action.METRICS, Action.TOKENS, Action.ADMIN})
TOPIC_ACTIONS = frozenset(Action) - NODE_ACTIONS


def every_action(topic: str, key: str | None) -> frozenset[Action]:
    """What `*` in place of actions means: everything that a rule on this topic and key pattern can speak of."""
    if key is not None and key != "*":
        return KEYED_ACTIONS
    return frozenset(Action) if topic == "*" else TOPIC_ACTIONS


def _check_reach(actions: frozenset[Action], topic: str, key: str | None) -> None:
    """A rule or scope that could never take hold, or would mean more than it says, is refused where it is written."""
    check_topic_pattern(topic)
    if not actions:
        raise ValueError(f"no actions are named: choose from {', '.join(Action)}")
    if topic != "*" and (wrong := actions & NODE_ACTIONS):
        raise ValueError(f"{_listed(wrong)} is about the node, not about a topic: give it the topic '*'")
    if key is None:
        return
    check_key_pattern(key)
    if key != "*" and (wrong := actions - KEYED_ACTIONS):
        raise ValueError(f"a key pattern narrows publish and read only: move {_listed(wrong)} to one without a key")


def _listed(actions: frozenset[Action]) -> str:
    return ", ".join(sorted(actions))


def _reach_text(actions: frozenset[Action], topic: str, key: str | None) -> str:
    where = f"{_listed(actions)} on topic {topic}"
    return where if key is None else f"{where} for key {key}"


class Rule(msgspec.Struct, frozen=True):
    """One sentence of a role. `key` None means the whole topic, its null-key records included. Deny wins over allow."""

    effect: Literal["allow", "deny"]
    actions: frozenset[Action]
    topic: str
    key: str | None = None

    def __post_init__(self) -> None:
        if self.effect not in ("allow", "deny"):
            raise ValueError(f"the effect {self.effect!r} is neither 'allow' nor 'deny'")
        _check_reach(self.actions, self.topic, self.key)

    def __str__(self) -> str:
        return f"{self.effect} {_reach_text(self.actions, self.topic, self.key)}"


class Scope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A narrowing that a credential carries: with scopes, only what a role allows *and* a scope names is allowed.

    As text: `actions:topic[:key]`, for instance `publish,read:orders:eu/*` or `*:orders*`.
    """

    actions: frozenset[Action]
    topic: str
    key: str | None = None

    def __post_init__(self) -> None:
        _check_reach(self.actions, self.topic, self.key)

    @classmethod
    def parse(cls, text: str) -> "Scope":
        """From `actions:topic[:key]`; raises `ValueError` saying what is wrong. The key may hold colons."""
        actions_text, separator, rest = text.partition(":")
        if not separator:
            raise ValueError(f"the scope {text!r} names no topic: write actions:topic or actions:topic:key")
        topic, separator, key_text = rest.partition(":")
        key = key_text if separator else None
        return cls(parse_actions(actions_text.split(","), topic, key), topic, key)

    def __str__(self) -> str:
        text = f"{','.join(sorted(self.actions))}:{self.topic}"
        return text if self.key is None else f"{text}:{self.key}"

    def covers(self, action: Action, topic: str) -> bool:
        """Whether the scope speaks of this action and topic, for some key at least."""
        return action in self.actions and matches(self.topic, topic)


def parse_actions(names: Sequence[str], topic: str, key: str | None) -> frozenset[Action]:
    """Names as users write them; `*` alone stands for every action that fits the patterns."""
    if list(names) == ["*"]:
        return every_action(topic, key)
    try:
        return frozenset(Action(name.strip()) for name in names)
    except ValueError:
        known = set(Action)
        wrong = next(name for name in names if name.strip() not in known)
        raise ValueError(f"unknown action {wrong!r}: choose from {', '.join(Action)}, or '*' alone for all") from None


def check_role_name(name: str) -> None:
    """Raise `ValueError` unless `name` can name a role."""
    if len(name) > ROLE_NAME_CHARS_MAX or not _ROLE_NAME.fullmatch(name):
        raise ValueError(
            f"{name[:ROLE_NAME_CHARS_MAX]!r} is no role name: begin with a letter, go on with letters, digits, . _ -, "
            f"at most {ROLE_NAME_CHARS_MAX} characters"
        )


class Role(msgspec.Struct, frozen=True):
    """A named set of rules."""

    name: str
    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        check_role_name(self.name)


class Binding(msgspec.Struct, frozen=True):
    """Gives a role to principals and groups, by patterns. The principal `anonymous` is reached by its exact name only."""

    role: str
    principals: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.principals and not self.groups:
            raise ValueError(f"the binding of role {self.role!r} names neither principals nor groups")
        for pattern in self.principals:
            check_name_pattern(pattern, "principal pattern")
        for pattern in self.groups:
            check_name_pattern(pattern, "group pattern")


def _allowing(name: str, *actions: Action) -> Role:
    return Role(name, (Rule("allow", frozenset(actions), "*"),))


# Admin last: a refusal names the first roles that would help, and the smallest is the better advice.
BUILT_IN_ROLES = (
    _allowing("publisher", Action.PUBLISH, Action.DESCRIBE, Action.TRANSACTION),
    _allowing("subscriber", Action.READ, Action.DESCRIBE, Action.GROUP),
    _allowing("monitor", Action.METRICS, Action.DESCRIBE),
    _allowing("admin", *Action),
)


KeyMatcher: TypeAlias = Callable[[bytes | None], bool]


class Form(Enum):
    """The three forms of a decision."""

    ALL = "all"
    NONE = "none"
    SOME_KEYS = "some keys"


class Decision(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One of `AllKeys`, `NoKeys`, `SomeKeys`. `reason` is a clause: the deciding rules, or what would have allowed it."""

    ALL: ClassVar[Form] = Form.ALL
    NONE: ClassVar[Form] = Form.NONE
    SOME_KEYS: ClassVar[Form] = Form.SOME_KEYS

    form: ClassVar[Form]
    reason: str

    def allows(self, key: bytes | None) -> bool:
        """Whether a record with this key may pass; None is the null key."""
        raise NotImplementedError

    def __bool__(self) -> NoReturn:
        raise TypeError("a decision is all, none or some keys, never true or false: match on it or look at its form")


class AllKeys(Decision, frozen=True, kw_only=True, gc=False):
    """Every record of the topic: batches pass unopened."""

    form: ClassVar[Form] = Form.ALL

    def allows(self, key: bytes | None) -> bool:
        return True


class NoKeys(Decision, frozen=True, kw_only=True, gc=False):
    """Nothing of the topic."""

    form: ClassVar[Form] = Form.NONE

    def allows(self, key: bytes | None) -> bool:
        return False


class SomeKeys(Decision, frozen=True, kw_only=True, gc=False):
    """The records whose key `matcher` accepts; the null key is accepted only where the whole topic was allowed."""

    form: ClassVar[Form] = Form.SOME_KEYS
    matcher: KeyMatcher

    def allows(self, key: bytes | None) -> bool:
        return self.matcher(key)


def decision_over(allowed: Sequence[str | None], denied: Sequence[str | None], reason: str) -> Decision:
    """The decision that key patterns make: what `allowed` reaches and `denied` does not. None or `*` is the whole topic."""
    allow, deny = KeySet(allowed), KeySet(denied)
    if deny.whole:
        return NoKeys(reason=reason)
    if allow.whole:
        if not deny.exact and not deny.prefixes:
            return AllKeys(reason=reason)
        return SomeKeys(matcher=_all_but(deny), reason=reason)
    exact = frozenset(key for key in allow.exact if not deny.holds(key))
    prefixes = tuple(prefix for prefix in allow.prefixes if not prefix.startswith(deny.prefixes))
    if not exact and not prefixes:
        return NoKeys(reason=reason)
    return SomeKeys(matcher=_only(exact, prefixes, deny), reason=reason)


def _all_but(deny: KeySet) -> KeyMatcher:
    exact, prefixes = deny.exact, deny.prefixes
    return lambda key: key is None or not (key in exact or key.startswith(prefixes))


def _only(exact: frozenset[bytes], prefixes: tuple[bytes, ...], deny: KeySet) -> KeyMatcher:
    """`exact` holds no denied key any more, so denials matter only below the prefixes."""
    if not prefixes:
        return exact.__contains__  # the null key is in no set of bytes
    denied_exact, denied_prefixes = deny.exact, deny.prefixes
    if not denied_exact and not denied_prefixes:
        return lambda key: key is not None and (key in exact or key.startswith(prefixes))
    return lambda key: (
        key is not None
        and (key in exact or key.startswith(prefixes))
        and not (key in denied_exact or key.startswith(denied_prefixes))
    )


def both(one: Decision, other: Decision) -> Decision:
    """What both decisions allow; `other` narrows, so its reason is the one that explains a loss."""
    if isinstance(one, NoKeys) or isinstance(other, AllKeys):
        return one
    if isinstance(other, NoKeys):
        return other
    reason = f"{one.reason}; {other.reason}"
    if isinstance(one, SomeKeys) and isinstance(other, SomeKeys):
        first, second = one.matcher, other.matcher
        return SomeKeys(matcher=lambda key: first(key) and second(key), reason=reason)
    assert isinstance(other, SomeKeys)
    return SomeKeys(matcher=other.matcher, reason=reason)
