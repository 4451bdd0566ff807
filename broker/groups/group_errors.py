"""What groups refuse, part of the broker's tree of errors. Names and reasons are Kafka's, so that its codes follow from them.

BrokerError
└── GroupProblem
    ├── GroupIdInvalid          no name at all, or one longer than may be
    ├── GroupUnknown            no such group, or one of the other kind
    ├── GroupNotEmpty           it has members
    ├── GroupFull               as many members, groups or bytes as may be
    ├── MemberUnknown           not a member, or not any more: join again
    ├── MemberIdRequired        a new member, told its id: join again with it (KIP-394)
    ├── InstanceFenced          another member has the static instance id now (KIP-345)
    ├── InstanceUnreleased      another member still has the static instance id (KIP-848)
    ├── GenerationIllegal       not the generation of the group
    ├── MemberEpochFenced       not an epoch of the member (KIP-848)
    ├── MemberEpochStale        an earlier epoch of the member (KIP-848)
    ├── RebalanceUnderWay       join again
    ├── ProtocolInconsistent    no protocol that all members know
    ├── AssignorUnsupported     no server-side assignor of this name (KIP-848)
    ├── SubscriptionInvalid     a pattern of topic names that cannot be compiled
    ├── SessionTimeoutInvalid   out of the range that the node allows
    ├── OffsetMetadataTooLarge  of one committed offset
    └── TopicSubscribed         its offsets are in use
"""

from __future__ import annotations

from broker.errors import BrokerError

NAME_CHARS_SHOWN = 128


class GroupProblem(BrokerError):
    """Something about a consumer group."""


class GroupIdInvalid(GroupProblem):
    def __init__(self, limit_chars: int) -> None:
        super().__init__(f"a group id has 1 to {limit_chars} characters")


class GroupUnknown(GroupProblem):
    def __init__(self, group: str, why: str = "does not exist") -> None:
        self.group = group[:NAME_CHARS_SHOWN]
        super().__init__(f"group {self.group!r} {why}")


class GroupNotEmpty(GroupProblem):
    def __init__(self, group: str) -> None:
        self.group = group[:NAME_CHARS_SHOWN]
        super().__init__(f"group {self.group!r} has members; stop them first")


class GroupFull(GroupProblem):
    def __init__(self, limit_name: str, limit: int) -> None:
        self.limit_name, self.limit = limit_name, limit
        super().__init__(f"{limit_name} ({limit}) is reached")


class MemberUnknown(GroupProblem):
    def __init__(self) -> None:
        super().__init__("the group has no such member; join again as a new one")


class MemberIdRequired(GroupProblem):
    def __init__(self, member_id: str) -> None:
        self.member_id = member_id
        super().__init__("join again with the member id that is given here")


class InstanceFenced(GroupProblem):
    def __init__(self) -> None:
        super().__init__("another member with this group.instance.id has taken its place")


class InstanceUnreleased(GroupProblem):
    def __init__(self) -> None:
        super().__init__("a member with this group.instance.id is still in the group")


class GenerationIllegal(GroupProblem):
    def __init__(self, generation: int, current: int) -> None:
        self.generation, self.current = generation, current
        super().__init__(f"generation {generation} is not the group's, which is {current}")


class MemberEpochFenced(GroupProblem):
    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; give up all partitions and join again with epoch 0")


class MemberEpochStale(GroupProblem):
    def __init__(self, epoch: int, current: int) -> None:
        self.epoch, self.current = epoch, current
        super().__init__(f"epoch {epoch} is not the member's, which is {current}")


class RebalanceUnderWay(GroupProblem):
    def __init__(self) -> None:
        super().__init__("the group rebalances")


class ProtocolInconsistent(GroupProblem):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class AssignorUnsupported(GroupProblem):
    def __init__(self, name: str, supported: str) -> None:
        super().__init__(f"ServerAssignor {name[:NAME_CHARS_SHOWN]} is not supported. Supported assignors: {supported}.")


class SubscriptionInvalid(GroupProblem):
    def __init__(self, reason: str) -> None:
        super().__init__(f"SubscribedTopicRegex cannot be used: {reason}")


class SessionTimeoutInvalid(GroupProblem):
    def __init__(self, low_ms: int, high_ms: int) -> None:
        super().__init__(f"the session timeout is not from {low_ms} ms to {high_ms} ms")


class OffsetMetadataTooLarge(GroupProblem):
    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the metadata of an offset has at most {limit_bytes} bytes (groups.offset_metadata_bytes_max)")


class TopicSubscribed(GroupProblem):
    def __init__(self) -> None:
        super().__init__("a member of the group is subscribed to the topic")
