"""Server-side assignors: everything is read by exactly one, evenly, and little moves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.engine.base import Topic
from broker.groups.assignors import Places, range_by_topic, uniform


def topic(number: int, partitions: int) -> Topic:
    return Topic(bytes(15) + bytes((number,)), f"t{number}", partitions, {}, 0)


@st.composite
def groups(draw: st.DrawFn) -> tuple[dict[str, list[Topic]], dict[str, Places]]:
    topics = [topic(number, draw(st.integers(1, 12))) for number in range(draw(st.integers(0, 4)))]
    members = [f"m{number}" for number in range(draw(st.integers(1, 6)))]
    alike = draw(st.booleans())
    subsets = st.lists(st.sampled_from(topics), unique_by=lambda one: one.name) if topics else st.just([])
    wanted = {member: list(topics) if alike else draw(subsets) for member in members}
    places = [(one.topic_id, partition) for one in topics for partition in range(one.partitions + 1)]
    held = {member: frozenset(draw(st.sets(st.sampled_from(places)))) if places else frozenset() for member in [*members, "gone"]}
    return wanted, held


def check_whole(wanted: dict[str, list[Topic]], found: dict[str, Places]) -> None:
    assert found.keys() == wanted.keys()
    given_out = [place for places in found.values() for place in places]
    assert len(given_out) == len(set(given_out)), "each partition has one reader"
    readable = {(one.topic_id, partition) for topics in wanted.values() for one in topics for partition in range(one.partitions)}
    assert set(given_out) == readable
    for member, places in found.items():
        assert {topic_id for topic_id, _ in places} <= {one.topic_id for one in wanted[member]}


@given(groups())
def test_uniform_is_whole_and_as_even_as_can_be(group: tuple[dict[str, list[Topic]], dict[str, Places]]) -> None:
    wanted, held = group
    found = uniform(wanted, held)
    check_whole(wanted, found)
    for member, places in found.items():
        for topic_id, _ in places:
            readers = [one for one, topics in wanted.items() if topic_id in {found.topic_id for found in topics}]
            assert len(places) - 1 <= min(len(found[one]) for one in readers), f"{member} could give one away"
    assert uniform(wanted, found) == found, "who is assigned evenly keeps everything"


@given(groups())
def test_range_is_whole_and_contiguous(group: tuple[dict[str, list[Topic]], dict[str, Places]]) -> None:
    wanted, held = group
    found = range_by_topic(wanted, held)
    check_whole(wanted, found)
    for places in found.values():
        for topic_id in {topic_id for topic_id, _ in places}:
            numbers = sorted(partition for one, partition in places if one == topic_id)
            assert numbers == list(range(numbers[0], numbers[-1] + 1))


def test_a_newcomer_takes_no_more_than_its_part() -> None:
    whole = topic(1, 12)
    before = uniform({"a": [whole], "b": [whole]}, {})
    after = uniform({"a": [whole], "b": [whole], "c": [whole]}, before)
    assert [len(after[member]) for member in "abc"] == [4, 4, 4]
    assert after["a"] <= before["a"]
    assert after["b"] <= before["b"]


def test_ranges_of_topics_with_equal_keys_go_together() -> None:
    topics = [topic(1, 5), topic(2, 5)]
    found = range_by_topic({"a": topics, "b": topics}, {})
    numbers = [sorted(partition for topic_id, partition in found["a"] if topic_id == one.topic_id) for one in topics]
    assert numbers == [[0, 1, 2], [0, 1, 2]]


def test_many_members_of_many_partitions() -> None:
    topics = [topic(number, 100) for number in range(20)]
    wanted = {f"m{number}": topics for number in range(300)}
    found = uniform(wanted, {})
    assert {len(places) for places in found.values()} == {6, 7}
