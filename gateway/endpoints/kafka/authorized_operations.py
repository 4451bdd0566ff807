"""What a session may do, as Kafka's clients are told it: a bit for each `AclOperation` (KIP-430)."""

from __future__ import annotations

from gateway.endpoints.kafka.call import Call
from security.policy.model import Action, Decision

NOT_ASKED = -(2**31)

READ, WRITE, CREATE, DELETE, ALTER, DESCRIBE = 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8
DESCRIBE_CONFIGS, ALTER_CONFIGS, IDEMPOTENT_WRITE = 1 << 10, 1 << 11, 1 << 12

ON_TOPIC = {
    Action.READ: READ,
    Action.PUBLISH: WRITE,
    Action.CREATE: CREATE,
    Action.DELETE: DELETE,
    Action.ALTER: ALTER | ALTER_CONFIGS,
    Action.DESCRIBE: DESCRIBE | DESCRIBE_CONFIGS,
}
ON_CLUSTER = CREATE | ALTER | DESCRIBE | DESCRIBE_CONFIGS | ALTER_CONFIGS | IDEMPOTENT_WRITE


def on_topic(call: Call, topic: str) -> int:
    """Of publish and read also where only some keys are allowed."""
    pipeline, bits = call.node.pipeline, 0
    for action, bit in ON_TOPIC.items():
        decision = pipeline.policy.decide(call.session.principal, action, topic, pipeline.clock.now_ms())
        if decision.form is not Decision.NONE:
            bits |= bit
    return bits


def on_cluster(call: Call) -> int:
    """Everything for administrators; who else is connected may describe it."""
    pipeline = call.node.pipeline
    decision = pipeline.policy.decide(call.session.principal, Action.ADMIN, "", pipeline.clock.now_ms())
    return DESCRIBE if decision.form is Decision.NONE else ON_CLUSTER
