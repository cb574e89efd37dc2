"""A dump that differs in anything from what plain hooks saw voids the measurement."""

import json

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import rounds
import torch
from rounds import measure
from variants import MODES, armed
from verify import VoidMeasurementError, faults, read, verify
from witness import statistics_of, tensors_in, watch
from workloads import TINY

RANK = "runs/000000/rank-0"
MLP = ("model.layers.1.mlp", "output", 2)
"""Module, slot and forward of the record that the tests spoil."""


@pytest.fixture(scope="module")
def model():
    return TINY.build()


@pytest.fixture(scope="module")
def testimony(model):
    return watch(model, lambda **options: TINY.generate(model, **options))


@pytest.fixture
def dumped(model, tmp_path):
    """Return a function that makes a dump in some mode and returns its path."""

    def make(mode):
        with armed(model, mode, tmp_path / "dump"):
            TINY.generate(model)
        return tmp_path / "dump"

    return make


def wrong(dump, mode, testimony):
    return list(faults(read(dump), MODES[mode], testimony))


def record(table):
    """Return the number of the row of the record that is spoiled."""
    module, slot, forward = MLP
    found = pc.and_(pc.equal(table["module"], module), pc.equal(table["slot"], slot))
    (number,) = pc.indices_nonzero(pc.and_(found, pc.equal(table["forward"], forward)))
    return number.as_py()


def spoil_index(dump, change):
    path = dump / RANK / "index.parquet"
    table = pq.read_table(path)
    pq.write_table(change(table, record(table)), path)


def replaced(column, change):
    """Return a change of the index that replaces one value of the spoiled record."""

    def apply(table, number):
        values = table[column].to_pylist()
        values[number] = change(values[number])
        place = table.schema.get_field_index(column)
        array = pa.array(values, table.schema.field(column).type)
        return table.set_column(place, table.schema.field(column), array)

    return apply


def flip_a_bit(dump):
    table = pq.read_table(dump / RANK / "index.parquet")
    row = table.slice(record(table), 1).to_pylist()[0]
    with (dump / RANK / row["shard"]).open("r+b") as shard:
        shard.seek(row["offset"])
        (byte,) = shard.read(1)
        shard.seek(row["offset"])
        shard.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("mode", MODES)
def test_a_dump_is_what_the_witness_saw(mode, dumped, testimony):
    assert not wrong(dumped(mode), mode, testimony)


@pytest.mark.parametrize("mode", ["tensors", "both"])
def test_one_flipped_bit_is_found(mode, dumped, testimony):
    dump = dumped(mode)
    flip_a_bit(dump)
    assert any("mlp" in fault and "loaded" in fault for fault in wrong(dump, mode, testimony))


@pytest.mark.parametrize("mode", ["tensors", "statistics", "both"])
def test_a_missing_record_is_found(mode, dumped, testimony):
    dump = dumped(mode)
    spoil_index(dump, lambda t, i: pa.concat_tables([t.slice(0, i), t.slice(i + 1)]))
    (fault,) = wrong(dump, mode, testimony)
    assert "mlp" in fault
    assert "missing" in fault


def test_a_record_too_many_is_found(dumped, testimony):
    dump = dumped("statistics")
    spoil_index(dump, lambda t, i: pa.concat_tables([t, t.slice(i, 1)]))
    (fault,) = wrong(dump, "statistics", testimony)
    assert "2 times" in fault


def test_a_record_of_something_else_is_found(dumped, testimony):
    dump = dumped("statistics")
    spoil_index(dump, replaced("slot", lambda _slot: "output.0"))
    assert {fault.rpartition(") ")[2] for fault in wrong(dump, "statistics", testimony)} == {
        "is missing",
        "was not seen",
    }


@pytest.mark.parametrize("mode", ["statistics", "both"])
@pytest.mark.parametrize("name", ["min", "max", "mean", "std", "l2", "sum", "absmax"])
def test_a_statistic_that_is_off_by_a_billionth_is_found(mode, name, dumped, testimony):
    dump = dumped(mode)
    spoil_index(dump, replaced(name, lambda value: value + 1e-9))
    (fault,) = wrong(dump, mode, testimony)
    assert f": {name} is" in fault


@pytest.mark.parametrize("name", ["count", "zeros", "nan", "pos_inf", "neg_inf"])
def test_a_count_that_is_off_by_one_is_found(name, dumped, testimony):
    dump = dumped("statistics")
    spoil_index(dump, replaced(name, lambda count: count + 1))
    (fault,) = wrong(dump, "statistics", testimony)
    assert f": {name} is" in fault


@pytest.mark.parametrize("mode", ["tensors", "statistics", "both"])
def test_a_wrong_hash_in_the_index_is_found(mode, dumped, testimony):
    dump = dumped(mode)
    spoil_index(dump, replaced("hash", lambda value: value ^ 1))
    assert wrong(dump, mode, testimony)


def test_a_run_that_is_not_complete_is_found(dumped, testimony):
    dump = dumped("tensors")
    path = dump / "runs" / "000000" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"complete": False}), "utf-8")
    assert wrong(dump, "tensors", testimony) == ["the run is not complete"]


def test_other_tokens_are_found(dumped, testimony):
    reading = read(dumped("tensors"))
    with pytest.raises(VoidMeasurementError, match="tokens"):
        verify(reading, MODES["tensors"], testimony, testimony.tokens + 1)


def test_logits_of_another_token_are_found(dumped, testimony):
    dump = dumped("last-logits")
    path = dump / RANK / "index.parquet"
    table = pq.read_table(path)
    forwards = pa.array([2 - n for n in table["forward"].to_pylist()], pa.int32())
    place = table.schema.get_field_index("forward")
    pq.write_table(table.set_column(place, table.schema.field(place), forwards), path)
    assert wrong(dump, "last-logits", testimony)


def test_every_dump_that_is_timed_is_verified(monkeypatch):
    dumps = 0

    def spoiled_reading(dump):
        nonlocal dumps
        dumps += 1
        if dumps == 3:  # the first of the second round
            flip_a_bit(dump)
        return read(dump)

    monkeypatch.setattr(rounds, "read", spoiled_reading)
    with pytest.raises(VoidMeasurementError, match="mlp"):
        measure(TINY, ["tensors", "both"], 2)
    assert dumps == 3


def test_the_witness_names_what_is_in_containers():
    x = torch.zeros(1)
    value = {"a": [x, (x, None)], 3: {"b": x}, "text": "no"}
    assert [name for name, _ in tensors_in("output", value)] == [
        "output.a.0",
        "output.a.1.0",
        "output.3.b",
    ]


def test_the_witness_knows_what_is_not_finite():
    values = torch.tensor([3.0, -4.0, 0.0, torch.nan, torch.inf, -torch.inf, -torch.inf])
    assert statistics_of(values) == {
        "count": 7,
        "min": -4.0,
        "max": 3.0,
        "mean": pytest.approx(-1 / 3),
        "std": pytest.approx((74 / 9) ** 0.5),
        "l2": 5.0,
        "sum": -1.0,
        "absmax": 4.0,
        "zeros": 1,
        "nan": 1,
        "pos_inf": 1,
        "neg_inf": 2,
    }
