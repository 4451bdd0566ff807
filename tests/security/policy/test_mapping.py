"""Configured policies: what is meant is read, and what is not is refused with the path of the wrong key."""

import tomllib

import pytest

from security.policy.mapping import PolicyInvalid, roles_and_bindings
from security.policy.model import Action, Binding, Role, Rule

GOOD = """
[[policy.roles.eu-writer]]
actions = ["publish", "read"]
topic = "orders*"
key = "eu/*"

[[policy.roles.eu-writer]]
effect = "deny"
actions = "*"
topic = "orders.secret"

[[policy.bindings]]
role = "eu-writer"
principals = ["cert:eu-*", "anonymous"]

[[policy.bindings]]
role = "admin"
groups = ["ops"]
"""


def test_a_policy_as_it_stands_in_a_configuration_file():
    roles, bindings = roles_and_bindings(tomllib.loads(GOOD)["policy"])
    topic_actions = frozenset(Action) - {Action.METRICS, Action.TOKENS, Action.ADMIN}
    assert roles == [
        Role(
            "eu-writer",
            (
                Rule("allow", frozenset({Action.PUBLISH, Action.READ}), "orders*", "eu/*"),
                Rule("deny", topic_actions, "orders.secret"),
            ),
        )
    ]
    assert bindings == [Binding("eu-writer", ("cert:eu-*", "anonymous")), Binding("admin", groups=("ops",))]


def test_nothing_configured_is_an_empty_policy():
    assert roles_and_bindings({}) == ([], [])


def rule(**changes):
    return {"roles": {"r": [{"actions": ["read"], "topic": "orders", **changes}]}}


@pytest.mark.parametrize(
    ("mapping", "where", "said"),
    [
        ({"role": {}}, "policy.role", "did you mean 'roles'"),
        ({"roles": []}, "policy.roles", "a table is expected, not a list"),
        ({"roles": {"r": {}}}, "policy.roles.r", "a list is expected, not a table"),
        ({"roles": {"r": ["read"]}}, "policy.roles.r[0]", "a table is expected, not text"),
        ({"roles": {"admin": []}}, "policy.roles.admin", "built in"),
        ({"roles": {"1": []}}, "policy.roles.1", "no role name"),
        ({"roles": {"r": [{"topic": "a"}]}}, "policy.roles.r[0]", "'actions' is missing"),
        ({"roles": {"r": [{"actions": "*"}]}}, "policy.roles.r[0]", "'topic' is missing"),
        (rule(topics="a"), "policy.roles.r[0].topics", "did you mean 'topic'"),
        (rule(zzz="a"), "policy.roles.r[0].zzz", "choose from effect, actions, topic, key"),
        (rule(topic=1), "policy.roles.r[0].topic", "text is expected, not int"),
        (rule(topic="a/b"), "policy.roles.r[0]", "no topic name"),
        (rule(key=None), "policy.roles.r[0].key", "text is expected"),
        (rule(actions=[]), "policy.roles.r[0]", "no actions"),
        (rule(actions=["raed"]), "policy.roles.r[0]", "unknown action 'raed'"),
        (rule(actions=[1]), "policy.roles.r[0].actions[0]", "text is expected"),
        (rule(actions={"read": True}), "policy.roles.r[0].actions", "a list is expected"),
        (rule(effect="Deny"), "policy.roles.r[0].effect", "'Deny' is neither"),
        (rule(effect=["deny"]), "policy.roles.r[0].effect", "neither"),
        ({"bindings": {}}, "policy.bindings", "a list is expected"),
        ({"bindings": [{"principals": ["a"]}]}, "policy.bindings[0]", "'role' is missing"),
        ({"bindings": [{"role": "admn", "principals": ["a"]}]}, "policy.bindings[0].role", "did you mean 'admin'"),
        ({"bindings": [{"role": "admin"}]}, "policy.bindings[0]", "neither principals nor groups"),
        ({"bindings": [{"role": "admin", "principals": "a"}]}, "policy.bindings[0].principals", "a list is expected"),
        ({"bindings": [{"role": "admin", "principals": ["a*b"]}]}, "policy.bindings[0]", "before its end"),
        ({"bindings": [{"role": "admin", "user": ["a"]}]}, "policy.bindings[0].user", "unknown key"),
    ],
)
def test_each_mistake_is_named_with_its_place(mapping, where, said):
    with pytest.raises(PolicyInvalid) as refused:
        roles_and_bindings(mapping)
    assert refused.value.where == where
    assert said in str(refused.value)
    assert str(refused.value).startswith(f"{where}: ")
