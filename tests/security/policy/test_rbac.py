"""Decisions: against a naive evaluator of every rule, and the promises one by one."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.policy.model import (
    BUILT_IN_ROLES,
    KEYED_ACTIONS,
    NODE_ACTIONS,
    TOPIC_ACTIONS,
    Action,
    Binding,
    Decision,
    Role,
    Rule,
    Scope,
)
from security.policy.patterns import TOPIC_CHARS_MAX, matches
from security.policy.rbac import Policy, PolicyEngine, policy_from_mapping
from security.principal import ANONYMOUS, Principal, PrincipalKind

KEYS = [None, b"", b"eu", b"eu/1", b"eu/12", b"us/1", b"\xff"]
TOPICS = ["", "orders", "orders.eu", "orders.eu.x", "o", "bills"]
ROLE_NAMES = ["r1", "r2", "r3"]

topic_patterns = st.sampled_from(["*", "o*", "orders", "orders*", "orders.eu", "orders.eu*", "bills"])
key_patterns = st.sampled_from(["*", "", "eu", "eu*", "eu/*", "eu/1", "us/*"])


@st.composite
def reaches(draw):
    """Actions, topic pattern and key pattern that may stand together in a rule or scope."""
    topic, key = draw(topic_patterns), draw(st.none() | key_patterns)
    without_key = TOPIC_ACTIONS | NODE_ACTIONS if topic == "*" else TOPIC_ACTIONS
    possible = without_key if key in (None, "*") else KEYED_ACTIONS
    return draw(st.frozensets(st.sampled_from(sorted(possible)), min_size=1)), topic, key


rules = st.builds(lambda effect, reach: Rule(effect, *reach), st.sampled_from(["allow", "deny"]), reaches())
roles = st.lists(rules, max_size=4).map(tuple)
principal_patterns = st.sampled_from(["user:ann", "user:a*", "user:*", "*", "anonymous", "anon*", "cert:x"])
group_patterns = st.sampled_from(["shop", "shop/*", "*"])
bindings = st.builds(
    lambda role, principals, groups: Binding(role, tuple(principals), tuple(groups)),
    st.sampled_from(ROLE_NAMES),
    st.lists(principal_patterns, min_size=1, max_size=2),
    st.lists(group_patterns, max_size=1),
)
policies = st.builds(
    lambda contents, bound: Policy(map(Role, ROLE_NAMES, contents), bound),
    st.tuples(roles, roles, roles),
    st.lists(bindings, max_size=3),
)
principals = st.just(ANONYMOUS) | st.builds(
    lambda name, held, groups, scopes: Principal(
        name, PrincipalKind.USER, "token", groups, held, scopes=None if scopes is None else tuple(scopes)
    ),
    st.sampled_from(["user:ann", "user:bob", "cert:x"]),
    st.frozensets(st.sampled_from([*ROLE_NAMES, "gone"])),
    st.frozensets(st.sampled_from(["shop", "shop/eu"])),
    st.none() | st.lists(st.builds(lambda reach: Scope(*reach), reaches()), max_size=3),
)


def holds(policy, principal, role):
    """The bindings read one by one, as an administrator would."""
    if principal.kind is PrincipalKind.ANONYMOUS:
        return any(role == b.role and "anonymous" in b.principals for b in policy.bindings)
    return role in principal.roles or any(
        role == b.role
        and (
            any(matches(pattern, principal.name) for pattern in b.principals)
            or any(matches(pattern, group) for pattern in b.groups for group in principal.groups)
        )
        for b in policy.bindings
    )


def speaks_of(sentence, action, topic, key):
    if action not in sentence.actions or not matches(sentence.topic, topic):
        return False
    if sentence.key is None or sentence.key == "*":
        return True
    return key is not None and matches(sentence.key, key.decode(errors="surrogateescape"))


def allowed_naively(policy, principal, action, topic, key):
    said = [
        rule.effect
        for role in policy.roles.values()
        if holds(policy, principal, role.name)
        for rule in role.rules
        if speaks_of(rule, action, topic, key)
    ]
    in_scope = principal.scopes is None or any(speaks_of(scope, action, topic, key) for scope in principal.scopes)
    return "allow" in said and "deny" not in said and in_scope


@settings(max_examples=250, deadline=None)
@given(policies, principals, st.sampled_from(Action), st.sampled_from(TOPICS))
def test_decisions_agree_with_reading_every_rule(policy, principal, action, topic):
    engine = PolicyEngine(policy)
    expected = {key: allowed_naively(policy, principal, action, topic, key) for key in KEYS}
    for decision in (policy.decide(principal, action, topic), *(engine.decide(principal, action, topic) for _ in "12")):
        assert {key: decision.allows(key) for key in KEYS} == expected
        assert decision.reason
        if action not in KEYED_ACTIONS:
            assert decision.form is not Decision.SOME_KEYS


@settings(max_examples=100, deadline=None)
@given(policies, principals, st.sampled_from(Action), st.sampled_from(TOPICS))
def test_roles_that_a_refusal_names_would_help(policy, principal, action, topic):
    _, _, names = policy.decide(principal, action, topic).reason.partition("(allowed by: ")
    for name in filter(None, names.removesuffix(")").split(", ")):
        helped = Principal("user:new", PrincipalKind.USER, "token", roles=frozenset({name}))
        assert Policy(policy.roles.values()).decide(helped, action, topic).form is not Decision.NONE


def user(name="user:ann", roles=(), groups=(), scopes=None, **more):
    held, belongs = frozenset(roles), frozenset(groups)
    return Principal(name, PrincipalKind.USER, "token", belongs, held, scopes=scopes, **more)


def rule(effect, actions, topic, key=None):
    return Rule(effect, frozenset(map(Action, actions.split(","))), topic, key)


SHOP = Policy(
    [
        Role("eu-reader", (rule("allow", "read", "orders*", "eu/*"), rule("allow", "describe", "orders*"))),
        Role("auditor", (rule("allow", "read", "*"), rule("deny", "read", "payroll*"))),
        Role("no-eu", (rule("deny", "read", "orders*", "eu/*"),)),
        *BUILT_IN_ROLES,
    ],
    [Binding("eu-reader", ("user:e*",), ("eu",)), Binding("admin", ("user:root",))],
)


class TestDecide:
    def test_nobody_may_anything_by_default(self):
        for principal in (ANONYMOUS, user()):
            for action in Action:
                decision = SHOP.decide(principal, action, "orders")
                assert decision.form is Decision.NONE
                assert "has no role" in decision.reason

    def test_anonymous_is_reached_by_its_name_and_by_no_wildcard(self):
        for pattern in ("*", "anonymous*", "a*"):
            assert Policy(bindings=[Binding("admin", (pattern,))]).decide(ANONYMOUS, Action.READ, "orders").form is Decision.NONE
        bound = Policy(bindings=[Binding("subscriber", ("anonymous",))])
        assert bound.decide(ANONYMOUS, Action.READ, "orders").form is Decision.ALL
        assert bound.decide(ANONYMOUS, Action.PUBLISH, "orders").form is Decision.NONE

    @pytest.mark.parametrize("principal", [user("user:eve"), user(groups=["eu"]), user(roles=["eu-reader"])])
    def test_roles_come_from_bindings_groups_and_credentials(self, principal):
        decision = SHOP.decide(principal, Action.READ, "orders.new")
        assert decision.form is Decision.SOME_KEYS
        assert [decision.allows(key) for key in KEYS] == [False, False, False, True, True, False, False]

    def test_a_denial_of_the_whole_topic_wins_over_every_role(self):
        decision = SHOP.decide(user(roles=["auditor", "admin"]), Action.READ, "payroll.2026")
        assert decision.form is Decision.NONE
        assert decision.reason == "the role auditor denies read on topic payroll*"

    def test_a_denial_of_keys_cuts_them_out(self):
        decision = SHOP.decide(user(roles=["auditor", "no-eu"]), Action.READ, "orders")
        assert [decision.allows(key) for key in KEYS] == [True, True, True, False, False, True, True]

    def test_actions_on_the_node_need_no_topic(self):
        assert SHOP.decide(user(roles=["monitor"]), Action.METRICS).form is Decision.ALL
        assert SHOP.decide(user(roles=["monitor"]), Action.TOKENS).form is Decision.NONE
        assert SHOP.decide(user("user:root"), Action.ADMIN).form is Decision.ALL

    def test_why_denied_names_what_is_held_and_what_would_help_nearest_first(self):
        reason = SHOP.decide(user(roles=["publisher", "gone"]), Action.READ, "orders.new").reason
        assert reason == "none of its roles (gone, publisher) allows it (allowed by: eu-reader, auditor, subscriber)"

    def test_a_role_that_denies_the_topic_itself_is_no_help(self):
        assert "auditor" not in SHOP.decide(user(), Action.READ, "payroll").reason

    def test_nothing_helps_where_no_role_allows(self):
        assert Policy([]).decide(user(), Action.READ, "orders").reason == "it has no role (no role does)"

    def test_a_reason_has_a_bound_however_many_roles_and_rules(self):
        many = [Role(f"r{n}", (rule("allow", "read", "orders", f"k{n}"),)) for n in range(500)]
        holder = user(roles=[role.name for role in many])
        assert len(Policy(many).decide(holder, Action.READ, "orders").reason) < 400
        assert len(Policy(many).decide(holder, Action.PUBLISH, "orders").reason) < 400


class TestScopes:
    def test_scopes_only_take_away(self):
        scoped = user(roles=["publisher"], scopes=(Scope.parse("publish,read:orders*"),))
        assert SHOP.decide(scoped, Action.PUBLISH, "orders.eu").form is Decision.ALL
        assert SHOP.decide(scoped, Action.READ, "orders.eu").form is Decision.NONE  # the scope names it, no role allows it
        refused = SHOP.decide(scoped, Action.PUBLISH, "bills")
        assert refused.form is Decision.NONE
        assert refused.reason == "the scopes of its token do not name publish here"

    def test_no_scopes_at_all_is_not_the_same_as_not_narrowed(self):
        assert SHOP.decide(user(roles=["admin"], scopes=()), Action.READ, "orders").form is Decision.NONE
        assert SHOP.decide(user(roles=["admin"], scopes=None), Action.READ, "orders").form is Decision.ALL

    def test_some_keys_within_some_keys(self):
        scoped = user(roles=["eu-reader"], scopes=(Scope.parse("read:orders:eu/1*"), Scope.parse("read:orders:us/*")))
        decision = SHOP.decide(scoped, Action.READ, "orders")
        assert [key for key in (b"eu/1", b"eu/12", b"eu/2", b"us/1", None) if decision.allows(key)] == [b"eu/1", b"eu/12"]
        assert "narrowed to" in decision.reason

    def test_a_scope_for_everything_still_needs_a_role(self):
        assert SHOP.decide(user(scopes=(Scope.parse("*:*"),)), Action.ADMIN).form is Decision.NONE


class TestPolicy:
    def test_roles_are_unique_and_bindings_point_to_them(self):
        with pytest.raises(ValueError, match="'a' is defined twice"):
            Policy([Role("a", ()), Role("a", ())])
        with pytest.raises(ValueError, match="'b', which does not exist"):
            Policy([Role("a", ())], [Binding("b", ("*",))])

    def test_describe_says_what_is_held(self):
        rights = SHOP.describe_for(user("user:eve", roles=["gone"], scopes=(Scope.parse("read:orders"),)))
        assert rights.roles == ("eu-reader",)
        assert rights.unknown_roles == ("gone",)
        assert rights.rules[0] == "eu-reader: allow read on topic orders* for key eu/*"
        assert rights.scopes == ("read:orders",)

    def test_from_a_mapping_the_built_in_roles_are_there(self):
        policy = policy_from_mapping(
            {
                "roles": {"w": [{"actions": ["publish"], "topic": "a"}]},
                "bindings": [{"role": "w", "principals": ["user:ann"]}, {"role": "monitor", "groups": ["ops"]}],
            }
        )
        assert policy.decide(user(), Action.PUBLISH, "a").form is Decision.ALL
        assert policy.decide(user(groups=["ops"]), Action.METRICS).form is Decision.ALL


class TestEngine:
    def test_a_replaced_policy_takes_hold_at_once_and_the_epoch_grows(self):
        engine = PolicyEngine(Policy(bindings=[Binding("admin", ("user:ann",))]))
        assert engine.decide(user(), Action.READ, "orders").form is Decision.ALL
        before = engine.epoch
        assert engine.replace(Policy()) == engine.epoch > before
        assert engine.decide(user(), Action.READ, "orders").form is Decision.NONE

    def test_the_epoch_follows_a_shared_policy_and_never_goes_back(self):
        engine = PolicyEngine(Policy(epoch=7))
        assert engine.epoch == 7
        assert engine.replace(Policy(epoch=40)) == 40
        assert engine.replace(Policy(epoch=3)) == 41

    def test_a_decision_is_made_once(self):
        engine = PolicyEngine(SHOP)
        first = engine.decide(user(roles=["eu-reader"]), Action.READ, "orders")
        assert engine.decide(user(roles=["eu-reader"]), Action.READ, "orders") is first
        assert engine.decide(user(roles=["auditor"]), Action.READ, "orders") is not first

    def test_the_cache_has_a_bound_and_keeps_what_is_asked_for(self):
        engine = PolicyEngine(SHOP, decisions_max=100)
        held = engine.decide(user(roles=["admin"]), Action.READ, "orders")
        for n in range(1_000):
            engine.decide(user(), Action.READ, f"probe{n}")
            assert engine.decide(user(roles=["admin"]), Action.READ, "orders") is held
            assert engine.cached <= 100

    def test_names_that_no_topic_can_have_are_not_kept(self):
        engine = PolicyEngine(SHOP)
        assert engine.decide(user(roles=["admin"]), Action.READ, "x" * (TOPIC_CHARS_MAX + 1)).form is Decision.ALL
        assert engine.cached == 0

    def test_expired_credentials_have_no_rights_even_with_a_decision_in_the_cache(self):
        engine = PolicyEngine(SHOP)
        admin = user(roles=["admin"], expires_at_ms=1_000)
        assert engine.decide(admin, Action.READ, "orders", now_ms=999).form is Decision.ALL
        expired = engine.decide(admin, Action.READ, "orders", now_ms=1_000)
        assert expired.form is Decision.NONE
        assert expired.reason == "its token has expired"
        assert engine.decide(admin, Action.READ, "orders", now_ms=999).form is Decision.ALL

    def test_an_error_while_deciding_denies_is_logged_and_not_kept(self, caplog, monkeypatch):
        engine = PolicyEngine(SHOP)
        with monkeypatch.context() as broken, caplog.at_level(logging.ERROR):
            broken.setattr(Policy, "_decide_by_roles", lambda *_: 1 / 0)
            assert engine.decide(user(roles=["admin"]), Action.READ, "orders").form is Decision.NONE
        assert "ZeroDivisionError" in caplog.text
        assert engine.decide(user(roles=["admin"]), Action.READ, "orders").form is Decision.ALL

    def test_an_action_that_does_not_exist_is_denied(self, caplog):
        assert PolicyEngine(SHOP).decide(user(roles=["admin"]), "frobnicate", "orders").form is Decision.NONE
        assert caplog.records

    def test_explain_is_one_line_with_who_what_and_why(self):
        engine = PolicyEngine(SHOP)
        assert engine.explain(user("user:root"), Action.READ, "orders") == (
            "user:root, read on orders: all, since the role admin allows read on topic *"
        )
        assert engine.explain(user(), Action.METRICS) == (
            "user:ann, metrics: none, since it has no role (allowed by: monitor, admin)"
        )
        assert engine.describe_for(user("user:root")).roles == ("admin",)
