"""What is found when a batch is written: hashes, aliases, and copies without gaps between them."""

import pytest
from xxhash import xxh3_64_intdigest

from hf_dumper.capture.owners import Owners
from hf_dumper.core.arena import Arena
from hf_dumper.core.types import ALIASED, SKIPPED, STORED, Description


def described(nbytes, shape=None, reason=""):
    shape = (nbytes,) if shape is None else shape
    return Description("m", "M", "output", "", "", "", "uint8", shape, "cpu", nbytes, reason)


@pytest.fixture
def chunk():
    return Arena().take(1)


def resolve(chunk, *contents, owners=None, begin=0, sent=0):
    """Lay the contents end to end in the chunk, as hooks do, and resolve them."""
    rows, place = [], begin
    for content in contents:
        chunk.memory[place : place + len(content)] = content
        rows.append((described(len(content)), 0, 0, place, None))
        place += len(content)
    return (owners or Owners()).resolve(rows, chunk, begin, sent)


def kept(records):
    return [None if r.span is None else bytes(r.span.view) for r in records]


def test_the_hash_is_that_of_the_bytes(chunk):
    assert list(resolve(chunk, b"abc").hash) == [xxh3_64_intdigest(b"abc")]


def test_equal_bytes_are_kept_once(chunk):
    records = resolve(chunk, b"one", b"two", b"one")
    assert [r.status for r in records] == [STORED, STORED, ALIASED]
    assert records.alias_of[2] == 0


def test_the_gaps_of_aliases_are_closed(chunk):
    records = resolve(chunk, b"aa", b"bbb", b"aa", b"c", b"bbb", b"dddd", begin=7)
    assert kept(records) == [b"aa", b"bbb", None, b"c", None, b"dddd"]
    assert records.offset == [7, 9, None, 12, None, 13]


def test_equal_bytes_of_another_shape_are_kept(chunk):
    chunk.memory[:8] = b"samesame"
    rows = [(described(4, (4,)), 0, 0, 0, None), (described(4, (2, 2)), 0, 0, 4, None)]
    assert [r.status for r in Owners().resolve(rows, chunk, 0, 0)] == [STORED, STORED]


def test_an_owner_may_be_in_an_earlier_batch_of_the_forward(chunk):
    owners = Owners()
    resolve(chunk, b"one", b"two", owners=owners)
    assert resolve(chunk, b"two", owners=owners, begin=6, sent=2).alias_of == [1]
    assert owners.aliased == 1


def test_a_new_forward_begins_with_nothing_known(chunk):
    owners = Owners()
    resolve(chunk, b"one", owners=owners)
    assert resolve(chunk, b"one", owners=owners, begin=3).alias_of == [None]


def test_bytes_that_were_hashed_and_not_copied_belong_to_their_first_record(chunk):
    chunk.memory[:4] = b"once"
    known = xxh3_64_intdigest(b"once")
    rows = [(described(4), 0, 0, 0, known), (described(4), 0, 0, None, known)]
    records = Owners().resolve(rows, chunk, 0, 0)
    assert records.alias_of == [None, 0]


def test_empty_tensors_own_their_nothing(chunk):
    assert [r.status for r in resolve(chunk, b"", b"")] == [STORED, STORED]


def test_a_skipped_record_has_neither_hash_nor_bytes(chunk):
    rows = [(described(0, reason="sparse"), 0, 0, None, None)]
    for memory in (chunk, None):
        (record,) = Owners().resolve(rows, memory, 0, 0)
        assert (record.status, record.hash) == (SKIPPED, None)
