import struct

from broker.log.layout import (
    JOURNAL_MAGIC,
    FileHeader,
    pack_batch_header,
    pack_file_header,
    pack_frame_header,
)
from tests.simulation.nonces import NonceWatch

TOPIC = b"t" * 16


def watch():
    complaints = []
    return NonceWatch(complaints.append), complaints


def batch(nonce, content, *, key_id=1, topic_id=TOPIC, key_hashes=b""):
    size = 128 + len(key_hashes) + len(content)
    nonce = nonce.to_bytes(12, "big")
    head = pack_batch_header(0, size, len(key_hashes) // 8, topic_id, 0, key_id, nonce, 0, 0, 1, 0, 0, 1, bytes(16))
    return head + key_hashes + content


def journal_header(key_id):
    return pack_file_header(FileHeader(JOURNAL_MAGIC, 1, 128, 1, bytes(16), 0, key_id, bytes(60), 7))


def frame(state):
    return pack_frame_header(1, [], len(state)) + state


def test_one_nonce_for_two_batches_is_noticed_wherever_they_lie():
    nonces, complaints = watch()
    nonces.wrote("a", b"SPB1 not a header" + batch(1, b"x" * 40) + b"..." + batch(2, b"y" * 40))
    nonces.wrote("b", batch(3, b"x" * 40))
    assert (nonces.seen, complaints) == (3, [])
    nonces.wrote("b", bytes(1000) + batch(2, b"z" * 40))
    assert len(complaints) == 1
    assert "nonce reused" in complaints[0]


def test_the_same_bytes_again_are_a_copy():
    nonces, complaints = watch()
    nonces.wrote("a", batch(1, b"x" * 40, key_hashes=struct.pack("<2Q", 1, 2)))
    nonces.wrote("merged", batch(1, b"x" * 40, key_hashes=struct.pack("<2Q", 1, 2)))
    assert complaints == []


def test_another_key_or_topic_has_nonces_of_its_own():
    nonces, complaints = watch()
    nonces.wrote("a", batch(1, b"x" * 40) + batch(1, b"y" * 40, key_id=2) + batch(1, b"z" * 40, topic_id=b"u" * 16))
    assert complaints == []


def test_states_of_frames_share_the_system_key_of_their_file_with_the_views_values():
    nonces, complaints = watch()
    nonces.wrote("j1", journal_header(5))
    nonces.wrote("j2", journal_header(6))
    nonces.wrote("j1", frame(bytes(12) + b"one"))
    nonces.wrote("j2", frame(bytes(12) + b"two"))
    assert complaints == []
    nonces.wrote("j1", frame(bytes(12) + b"three"))
    assert len(complaints) == 1
    nonces.stored([(b"\x01key", struct.pack("<I", 6) + bytes(12) + b"four")])
    assert len(complaints) == 2


def test_wrapped_keys_in_the_view_are_no_values():
    nonces, complaints = watch()
    nonces.stored([(b"\x02a", bytes(60)), (b"\x02b", bytes(12) + b"x" * 48)])
    assert (nonces.seen, complaints) == (0, [])
