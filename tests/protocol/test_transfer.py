"""A blob in pieces: in order, within its size, with its digest, and resumable."""

import pytest

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.messages import CHUNK
from protocol.tensors import digest_of
from protocol.transfer import Incoming, Transfers, pieces

BLOB = bytes(range(100))


def incoming(blob=BLOB):
    return Incoming(digest_of(blob), len(blob))


def test_pieces_put_together_are_the_blob():
    arriving = incoming()
    for offset, piece in pieces(BLOB, size=7):
        assert arriving.offset == offset and not arriving.complete
        arriving.add(offset, bytes(piece))
    assert arriving.complete and arriving.data() == BLOB
    assert arriving.data() == BLOB, "asking twice is harmless"


def test_a_transfer_goes_on_at_its_offset():
    arriving = incoming()
    arriving.add(0, BLOB[:33])
    for offset, piece in pieces(BLOB, arriving.offset, 10):
        arriving.add(offset, bytes(piece))
    assert arriving.data() == BLOB


@pytest.mark.parametrize(("size", "expected"), [(0, []), (1, [1]), (10, [10]), (11, [10, 1]), (20, [10, 10])])
def test_pieces_are_full_but_the_last(size, expected):
    assert [len(piece) for _, piece in pieces(bytes(size), size=10)] == expected


def test_pieces_are_views_of_a_chunk_at_most():
    data = bytes(CHUNK + 1)
    sizes = [len(piece) for _, piece in pieces(data)]
    assert sizes == [CHUNK, 1]
    assert all(piece.obj is data for _, piece in pieces(data))


@pytest.mark.parametrize("offset", [0, 9, 11, 99])
def test_a_piece_out_of_order_is_refused_and_changes_nothing(offset):
    arriving = incoming()
    arriving.add(0, BLOB[:10])
    with pytest.raises(RemoteProtocolError):
        arriving.add(offset, BLOB[10:20])
    arriving.add(10, BLOB[10:])
    assert arriving.data() == BLOB


def test_a_piece_past_the_end_is_too_big():
    arriving = incoming()
    with pytest.raises(RemoteProtocolError) as caught:
        arriving.add(0, BLOB + b"x")
    assert caught.value.close_code == 1009 and arriving.offset == 0


def test_other_bytes_than_the_digests_are_refused():
    arriving = incoming()
    arriving.add(0, bytes(100))
    with pytest.raises(RemoteProtocolError, match="sha256") as caught:
        arriving.data()
    assert caught.value.close_code == 1007


def test_half_a_blob_is_not_given_out():
    arriving = incoming()
    arriving.add(0, BLOB[:99])
    with pytest.raises(LocalProtocolError, match="99 of 100"):
        arriving.data()


@pytest.mark.parametrize(("size", "kept"), [(len(BLOB), True), (len(BLOB) + 1, False)])
def test_what_is_offered_with_another_size_begins_anew(size, kept):
    half = incoming()
    half.add(0, BLOB[:33])
    partial = {half.digest: half}
    transfers = Transfers(partial)
    transfers.offer({half.digest: size}, by_peer=True)
    assert (half.digest in partial) == kept
    assert transfers.expect(half.digest, size) == (33 if kept else 0)
    transfers.offer({}, by_peer=True)
    assert not partial
