"""Rules, scopes and the three forms of a decision."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.policy.model import (
    BUILT_IN_ROLES,
    NODE_ACTIONS,
    ROLE_NAME_CHARS_MAX,
    Action,
    AllKeys,
    Binding,
    Decision,
    NoKeys,
    Role,
    Rule,
    Scope,
    SomeKeys,
    both,
    decision_over,
)
from security.policy.patterns import matches

READ = frozenset({Action.READ})
KEYS = [None, b"", b"a", b"ab", b"abc", b"b", b"\xff\x00"]
key_patterns = st.lists(st.sampled_from([None, "*", "", "a", "a*", "ab", "ab*", "b", "b*", "c*"]), max_size=4)


def reaches(pattern, key):
    if pattern is None or pattern == "*":
        return True
    return key is not None and matches(pattern, key.decode(errors="surrogateescape"))


class TestDecision:
    @pytest.mark.parametrize("decision", [AllKeys(reason="r"), NoKeys(reason="r"), SomeKeys(matcher=bool, reason="r")])
    def test_asking_for_truth_raises(self, decision):
        with pytest.raises(TypeError, match="never true or false"):
            bool(decision)
        with pytest.raises(TypeError):
            _ = decision and "let through"
        with pytest.raises(TypeError):
            _ = not decision

    def test_the_three_forms(self):
        assert AllKeys(reason="r").form is Decision.ALL
        assert NoKeys(reason="r").form is Decision.NONE
        assert SomeKeys(matcher=bool, reason="r").form is Decision.SOME_KEYS
        assert all(AllKeys(reason="r").allows(key) for key in KEYS)
        assert not any(NoKeys(reason="r").allows(key) for key in KEYS)

    def test_a_decision_cannot_be_changed(self):
        with pytest.raises(AttributeError):
            NoKeys(reason="r").reason = "because"

    @given(key_patterns, key_patterns)
    def test_keys_are_allowed_by_some_pattern_and_denied_by_none(self, allowed, denied):
        decision = decision_over(allowed, denied, "r")
        for key in KEYS:
            expected = any(reaches(p, key) for p in allowed) and not any(reaches(p, key) for p in denied)
            assert decision.allows(key) == expected, key

    @given(key_patterns, key_patterns)
    def test_only_key_patterns_make_some_keys_and_some_keys_reach_something(self, allowed, denied):
        decision = decision_over(allowed, denied, "r")
        whole = {None, "*"}
        if decision.form is Decision.ALL:
            assert whole & set(allowed)
            assert not denied
        if decision.form is Decision.SOME_KEYS:
            assert not whole & set(denied)
            assert (set(allowed) | set(denied)) - whole

    @pytest.mark.parametrize("denied", [["ab"], ["ab*"], ["ab", "abc*"]])
    def test_a_denial_inside_an_allowed_prefix_cuts_it_out(self, denied):
        decision = decision_over(["a*"], denied, "r")
        for key in KEYS:
            expected = key is not None and key.startswith(b"a") and not any(reaches(p, key) for p in denied)
            assert decision.allows(key) == expected, key

    def test_a_key_set_that_is_denied_altogether_is_none_rather_than_an_empty_some(self):
        assert decision_over(["a", "ab*"], ["a*"], "r").form is Decision.NONE

    @pytest.mark.parametrize("allowed", [["a"], ["a*"], ["a", "b*"], [""]])
    def test_the_null_key_needs_the_whole_topic(self, allowed):
        assert not decision_over(allowed, [], "r").allows(None)
        assert not decision_over(allowed, ["aa"], "r").allows(None)
        assert decision_over([*allowed, "*"], ["aa"], "r").allows(None)

    @given(key_patterns, key_patterns, key_patterns, key_patterns)
    def test_both_is_the_intersection(self, one_allowed, one_denied, other_allowed, other_denied):
        one = decision_over(one_allowed, one_denied, "one")
        other = decision_over(other_allowed, other_denied, "other")
        for key in KEYS:
            assert both(one, other).allows(key) == (one.allows(key) and other.allows(key))

    def test_both_says_why_it_is_narrower(self):
        some = SomeKeys(matcher=bool, reason="some")
        assert both(AllKeys(reason="role"), NoKeys(reason="scope")).reason == "scope"
        assert both(NoKeys(reason="role"), NoKeys(reason="scope")).reason == "role"
        assert both(AllKeys(reason="role"), some).reason == "role; some"


class TestRule:
    def test_a_key_narrows_publish_and_read_only(self):
        Rule("allow", frozenset({Action.PUBLISH, Action.READ}), "orders", "eu/*")
        with pytest.raises(ValueError, match="move describe to one without a key"):
            Rule("allow", frozenset({Action.READ, Action.DESCRIBE}), "orders", "eu/*")
        Rule("allow", frozenset({Action.DESCRIBE}), "orders", "*")

    @pytest.mark.parametrize("action", sorted(NODE_ACTIONS))
    def test_actions_on_the_node_have_no_topic(self, action):
        Rule("allow", frozenset({action}), "*")
        with pytest.raises(ValueError, match="about the node"):
            Rule("allow", frozenset({action}), "orders*")

    def test_effects_and_actions_are_not_guessed(self):
        with pytest.raises(ValueError, match="neither 'allow' nor 'deny'"):
            Rule("Deny", READ, "orders")
        with pytest.raises(ValueError, match="no actions"):
            Rule("allow", frozenset(), "orders")

    def test_it_reads_as_a_sentence(self):
        assert str(Rule("deny", READ, "orders*", "eu/*")) == "deny read on topic orders* for key eu/*"


class TestScope:
    @pytest.mark.parametrize(
        "text", ["publish,read:orders:eu/*", "read:orders*", "read:orders:", "publish:orders:a:b:c", "metrics:*"]
    )
    def test_text_round_trip(self, text):
        assert str(Scope.parse(text)) == text

    def test_a_star_means_every_action_that_fits(self):
        assert Scope.parse("*:*").actions == frozenset(Action)
        assert Scope.parse("*:orders*").actions == frozenset(Action) - NODE_ACTIONS
        assert Scope.parse("*:orders:eu/*").actions == {Action.PUBLISH, Action.READ}

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("read", "names no topic"),
            ("", "names no topic"),
            ("raed:orders", "unknown action 'raed'"),
            (":orders", "unknown action ''"),
            ("read,*:orders", "unknown action '\\*'"),
            ("read:", "empty"),
            ("read:or/ders", "no topic name"),
            ("describe:orders:eu", "key"),
            ("admin:orders", "about the node"),
        ],
    )
    def test_wrong_text_says_what_is_wrong(self, text, said):
        with pytest.raises(ValueError, match=said):
            Scope.parse(text)

    def test_a_stored_scope_is_checked_like_a_new_one(self):
        scope = Scope(READ, "orders", "eu/*")
        assert msgspec.json.decode(msgspec.json.encode(scope), type=Scope) == scope
        for damaged in (b'{"actions":["read"],"topic":""}', b'{"actions":[],"topic":"a"}', b'{"actions":["x"],"topic":"a"}'):
            with pytest.raises(msgspec.ValidationError):
                msgspec.json.decode(damaged, type=Scope)


class TestRoleAndBinding:
    @pytest.mark.parametrize("name", ["", "1st", "a b", "a/b", "r" * (ROLE_NAME_CHARS_MAX + 1), "é", "a\n"])
    def test_role_names(self, name):
        Role("eu-writer.v2", ())
        with pytest.raises(ValueError, match="no role name"):
            Role(name, ())

    def test_a_binding_binds_somebody(self):
        with pytest.raises(ValueError, match="neither principals nor groups"):
            Binding("admin")
        with pytest.raises(ValueError, match="group pattern"):
            Binding("admin", groups=("a*b",))
        with pytest.raises(ValueError, match="principal pattern is empty"):
            Binding("admin", ("",))

    def test_the_built_in_roles(self):
        actions = {role.name: role.rules[0].actions for role in BUILT_IN_ROLES}
        assert actions == {
            "admin": frozenset(Action),
            "publisher": {Action.PUBLISH, Action.DESCRIBE, Action.TRANSACTION},
            "subscriber": {Action.READ, Action.DESCRIBE, Action.GROUP},
            "monitor": {Action.METRICS, Action.DESCRIBE},
        }
