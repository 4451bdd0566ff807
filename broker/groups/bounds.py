"""What a group or one of its members may be at most: names, and bytes in memory."""

from __future__ import annotations

from broker.groups.classic_member import Join, Sync
from broker.groups.consumer_member import Beat
from broker.groups.group_errors import GroupFull, GroupIdInvalid, SessionTimeoutInvalid
from broker.groups.group_options import GroupOptions


class Bounds:
    """`used` is what all members of the node have already, in bytes. GroupFull names the setting that is reached."""

    def __init__(self, options: GroupOptions) -> None:
        self._options = options

    def check_name(self, name: str, *, chars_min: int = 1) -> None:
        """GroupIdInvalid."""
        if not chars_min <= len(name) <= self._options.group_id_chars_max:
            raise GroupIdInvalid(self._options.group_id_chars_max)

    def check_join(self, asked: Join, used: int) -> None:
        """SessionTimeoutInvalid, GroupFull."""
        low, high = self._options.session_timeout_ms_min, self._options.session_timeout_ms_max
        if not low <= asked.session_timeout_ms <= high:
            raise SessionTimeoutInvalid(low, high)
        self._check_ids(asked.member_id, asked.instance_id)
        self._check_said(sum([len(name) + len(metadata) for name, metadata in asked.protocols]), used)

    def check_beat(self, beat: Beat, used: int) -> None:
        """GroupFull."""
        self._check_ids(beat.member_id, beat.instance_id, beat.rack_id)
        self._check_said(sum([len(topic) for topic in beat.topics or ()]), used)

    def check_sync(self, asked: Sync, used: int) -> None:
        """GroupFull."""
        self._check_all(sum([len(assignment) for assignment in asked.assignments.values()]), used)

    def _check_ids(self, *ids: str | None) -> None:
        limit = self._options.group_id_chars_max
        if max([len(one or "") for one in ids]) > limit:
            raise GroupFull("groups.group_id_chars_max", limit)

    def _check_said(self, size: int, used: int) -> None:
        if size > self._options.member_bytes_max:
            raise GroupFull("groups.member_bytes_max", self._options.member_bytes_max)
        self._check_all(size, used)

    def _check_all(self, size: int, used: int) -> None:
        if size + used > self._options.members_bytes_max:
            raise GroupFull("groups.members_bytes_max", self._options.members_bytes_max)
