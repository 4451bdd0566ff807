"""Role-based decisions: `Policy` is rules compiled into an index, `PolicyEngine` the policy in force and its cache.

Deny by default and deny wins: a decision starts from nothing, takes what the principal's roles allow and then loses what any of
them denies; a credential's scopes can only take more away. An error while deciding is a denial.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import msgspec

from security.policy.mapping import roles_and_bindings
from security.policy.model import (
    BUILT_IN_ROLES,
    Action,
    AllKeys,
    Binding,
    Decision,
    NoKeys,
    Role,
    Rule,
    both,
    decision_over,
)
from security.policy.patterns import TOPIC_CHARS_MAX, PatternIndex, packed
from security.principal import Principal, PrincipalKind

# About 300 bytes each: 20 MB when full, enough for 10,000 principals on six topics.
DECISIONS_MAX = 65_536
ROLES_NAMED_MAX = 3  # in a reason: it has to fit on a line of a log and of a terminal
RULES_NAMED_MAX = 4

_ANONYMOUS_KIND = PrincipalKind.ANONYMOUS  # an enum's members cost 100 ns to look up

logger = logging.getLogger(__name__)


class Grant(msgspec.Struct, frozen=True, gc=False):
    """One rule of one role for one action, with its sentence and, where it is about whole topics, its decision ready."""

    allow: bool
    key: str | None
    reason: str
    whole: AllKeys | NoKeys | None


class Reached(msgspec.Struct, frozen=True):
    """What all roles say about one topic pattern, for one action. `helpers`: a few that allow, to be named in refusals."""

    by_role: dict[str, tuple[Grant, ...]]
    helpers: tuple[str, ...]


class Rights(msgspec.Struct, frozen=True):
    """What a principal holds, as sentences, for `whoami` and for administrators."""

    principal: str
    roles: tuple[str, ...]
    unknown_roles: tuple[str, ...]
    rules: tuple[str, ...]
    scopes: tuple[str, ...] | None


class Policy:
    """Roles and bindings, compiled. Never changes: a changed policy is a new one, put in force by `PolicyEngine.replace`.

    Raises `ValueError` for two roles of one name and for a binding to a role that does not exist.
    """

    def __init__(self, roles: Iterable[Role] = BUILT_IN_ROLES, bindings: Iterable[Binding] = (), epoch: int = 1) -> None:
        self.epoch = epoch
        self.roles: dict[str, Role] = {}
        for role in roles:
            if role.name in self.roles:
                raise ValueError(f"the role {role.name!r} is defined twice")
            self.roles[role.name] = role
        self.bindings = tuple(bindings)
        for binding in self.bindings:
            if binding.role not in self.roles:
                raise ValueError(f"a binding names the role {binding.role!r}, which does not exist")
        self._by_principal = PatternIndex((name, b.role) for b in self.bindings for name in b.principals)
        self._by_group = PatternIndex((name, b.role) for b in self.bindings for name in b.groups)
        self._index = {action: PatternIndex(self._reached(action).items()) for action in Action}

    def _reached(self, action: Action) -> dict[str, Reached]:
        """By topic pattern: one look-up serves all roles of a principal, and a refusal's search for one that would help."""
        patterns: dict[str, dict[str, list[Grant]]] = {}
        for role in self.roles.values():
            for rule in role.rules:
                if action in rule.actions:
                    by_role = patterns.setdefault(rule.topic, {})
                    by_role.setdefault(role.name, []).append(_grant(role.name, action, rule))
        return {topic: Reached(packed(by_role), _helpers(by_role)) for topic, by_role in patterns.items()}

    def roles_of(self, principal: Principal) -> list[str]:
        """Names of the roles a principal holds, by bindings or by its credential. Some may not exist in this policy.

        A wildcard never reaches `anonymous`: whoever binds `*` means everybody who proved who they are.
        """
        return list(dict.fromkeys(self._held(principal)))

    def _held(self, principal: Principal) -> list[str]:
        """The same; one that is bound twice is there twice, which a decision does not mind."""
        if principal.kind is _ANONYMOUS_KIND:
            return self._by_principal.exactly(principal.name)
        names = self._by_principal.matching(principal.name)
        if principal.roles:
            names += sorted(principal.roles)  # sets have no order, reasons should
        if principal.groups:
            for group in sorted(principal.groups):
                names += self._by_group.matching(group)
        return names

    def decide(self, principal: Principal, action: Action, topic: str = "") -> Decision:
        """All, none or some keys, uncached. The actions about the node have no topic."""
        decision = self._decide_by_roles(self._held(principal), action, topic)
        if principal.scopes is None or isinstance(decision, NoKeys):
            return decision
        return both(decision, _decide_by_scopes(principal, action, topic))

    def _decide_by_roles(self, roles: list[str], action: Action, topic: str) -> Decision:
        reached = self._index[action].matching(topic)
        said: list[Grant] = []
        for pattern in reached:
            by_role = pattern.by_role
            for role in roles:
                if role in by_role:
                    said += by_role[role]
        if len(said) == 1 and said[0].whole is not None:
            return said[0].whole
        decision = _judge(said) if said else None
        return NoKeys(reason=_why_nothing(roles, reached)) if decision is None else decision

    def describe_for(self, principal: Principal) -> Rights:
        """Everything the principal holds under this policy."""
        names = self.roles_of(principal)
        known = [self.roles[name] for name in names if name in self.roles]
        return Rights(
            principal=principal.name,
            roles=tuple(role.name for role in known),
            unknown_roles=tuple(name for name in names if name not in self.roles),
            rules=tuple(f"{role.name}: {rule}" for role in known for rule in role.rules),
            scopes=None if principal.scopes is None else tuple(map(str, principal.scopes)),
        )


def policy_from_mapping(mapping: Mapping[str, object], where: str = "policy", epoch: int = 1) -> Policy:
    """The policy that a configuration describes (see `security.policy.mapping`), built-in roles included.

    Raises `security.policy.mapping.PolicyInvalid` with the path of the wrong key, beginning with `where`.
    """
    roles, bindings = roles_and_bindings(mapping, where)
    return Policy((*roles, *BUILT_IN_ROLES), bindings, epoch)


def _grant(role: str, action: Action, rule: Rule) -> Grant:
    allow, whole = rule.effect == "allow", rule.key is None or rule.key == "*"
    keys = "" if whole else f" for key {rule.key}"
    reason = f"the role {role} {'allows' if allow else 'denies'} {action} on topic {rule.topic}{keys}"
    if not whole:
        return Grant(allow, rule.key, reason, None)
    return Grant(allow, None, reason, AllKeys(reason=reason) if allow else NoKeys(reason=reason))


def _judge(grants: Sequence[Grant]) -> Decision | None:
    """What these grants make together; None where none of them allows anything to begin with. Deny wins."""
    allowed = [grant for grant in grants if grant.allow]
    denied = [grant for grant in grants if not grant.allow]
    for grant in denied:
        if grant.whole is not None:
            return grant.whole
    if not allowed:
        return None
    if not denied:
        for grant in allowed:
            if grant.whole is not None:
                return grant.whole
    reason = _joined(list(dict.fromkeys(grant.reason for grant in (*allowed, *denied))))
    return decision_over([grant.key for grant in allowed], [grant.key for grant in denied], reason)


def _helpers(by_role: Mapping[str, Sequence[Grant]]) -> tuple[str, ...]:
    return tuple(islice((role for role, grants in by_role.items() if _allow_something(grants)), ROLES_NAMED_MAX))


def _allow_something(grants: Sequence[Grant]) -> bool:
    decision = _judge(grants)
    return decision is not None and decision.form is not Decision.NONE


def _decide_by_scopes(principal: Principal, action: Action, topic: str) -> Decision:
    covering = [scope for scope in principal.scopes or () if scope.covers(action, topic)]
    if not covering:
        return NoKeys(reason=f"the scopes of its {principal.proved_by} do not name {action} here")
    reason = f"its {principal.proved_by} is narrowed to {', '.join(map(str, covering[:RULES_NAMED_MAX]))}"
    return decision_over([scope.key for scope in covering], (), reason)


def _why_nothing(roles: list[str], reached: list[Reached]) -> str:
    """The refusal's clause: what is held, and the roles nearest to the topic that would allow it."""
    held = f"none of its roles ({_named(roles)}) allows it" if roles else "it has no role"
    helpers = reached[0].helpers if len(reached) == 1 else _helpers_over(reached)
    return f"{held} (allowed by: {', '.join(helpers)})" if helpers else f"{held} (no role does)"


def _helpers_over(reached: list[Reached]) -> tuple[str, ...]:
    """Over several patterns: what one allows a role, another may deny it."""
    named = dict.fromkeys(role for pattern in reached for role in pattern.helpers)
    return tuple(islice((role for role in named if _allow_something(_all_of(role, reached))), ROLES_NAMED_MAX))


def _all_of(role: str, reached: list[Reached]) -> list[Grant]:
    return [grant for pattern in reached for grant in pattern.by_role.get(role, ())]


def _named(roles: list[str]) -> str:
    names = dict.fromkeys(roles)
    more = len(names) - ROLES_NAMED_MAX
    return ", ".join(names) if more <= 0 else f"{', '.join(islice(names, ROLES_NAMED_MAX))} and {more} more"


def _joined(reasons: list[str]) -> str:
    more = len(reasons) - RULES_NAMED_MAX
    return "; ".join(reasons) if more <= 0 else f"{'; '.join(reasons[:RULES_NAMED_MAX])}; and {more} more"


class _Generation:
    """A policy in force and the decisions made under it: they go together, so no decision outlives its policy.

    Two dictionaries make a bounded, nearly-least-recently-used cache without bookkeeping on hits: when the young one is
    full it becomes the old one, and what is asked for again moves back. A caller who asks for endless topic names
    cannot push out what others use.
    """

    __slots__ = ("epoch", "old", "policy", "young", "young_max")

    def __init__(self, policy: Policy, epoch: int, decisions_max: int) -> None:
        self.policy = policy
        self.epoch = epoch
        self.young: dict[tuple[str, Action, str], Decision] = {}
        self.old: dict[tuple[str, Action, str], Decision] = {}
        self.young_max = max(1, decisions_max // 2)

    def remember(self, asked: tuple[str, Action, str], decision: Decision) -> None:
        if len(self.young) >= self.young_max:
            self.old, self.young = self.young, {}
        self.young[asked] = decision


class PolicyEngine:
    """The policy in force. `decide` is what the pipeline calls; safe from any thread."""

    def __init__(self, policy: Policy, decisions_max: int = DECISIONS_MAX) -> None:
        self._decisions_max = decisions_max
        self._generation = _Generation(policy, policy.epoch, decisions_max)

    @property
    def policy(self) -> Policy:
        return self._generation.policy

    @property
    def epoch(self) -> int:
        """Grows with every `replace`; a decision kept outside is good for the epoch it was made in."""
        return self._generation.epoch

    @property
    def cached(self) -> int:
        """Decisions held now, at most `decisions_max`."""
        return len(self._generation.young) + len(self._generation.old)

    def replace(self, policy: Policy) -> int:
        """Put another policy in force, dropping every decision of the old one at once; returns the new epoch."""
        epoch = max(policy.epoch, self._generation.epoch + 1)
        self._generation = _Generation(policy, epoch, self._decisions_max)
        return epoch

    def decide(self, principal: Principal, action: Action, topic: str = "", now_ms: int | None = None) -> Decision:
        """All, none or some keys. With `now_ms` (Unix time), a principal whose credentials have expired gets none."""
        try:
            if now_ms is not None and principal.expired(now_ms):
                return NoKeys(reason=f"its {principal.proved_by} has expired")
            generation = self._generation
            asked = (principal.identity_key, action, topic)
            decision = generation.young.get(asked)
            return decision if decision is not None else _decide_afresh(generation, asked, principal)
        except Exception:
            # Any error is a denial. It is never cached, and never silent.
            logger.exception("deciding failed, so it is denied")
            return NoKeys(reason="deciding failed, the node's log says why")

    def explain(self, principal: Principal, action: Action, topic: str = "") -> str:
        """One line: who, what, which form, and why; for administrators and `why denied`."""
        decision = self.decide(principal, action, topic)
        where = f" on {topic[:TOPIC_CHARS_MAX]}" if topic else ""
        return f"{principal.name}, {action}{where}: {decision.form.value}, since {decision.reason}"

    def describe_for(self, principal: Principal) -> Rights:
        return self.policy.describe_for(principal)


def _decide_afresh(generation: _Generation, asked: tuple[str, Action, str], principal: Principal) -> Decision:
    decision = generation.old.get(asked)
    _, action, topic = asked
    if decision is None:
        decision = generation.policy.decide(principal, action, topic)
        if len(topic) > TOPIC_CHARS_MAX:
            return decision  # no such topic can exist: not worth the memory
    generation.remember(asked, decision)
    return decision
