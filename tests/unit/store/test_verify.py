"""Verification: an intact dump passes, and each kind of damage is named in one line."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hf_dumper.core.digests import DIGEST, sealed
from hf_dumper.core.types import RunInfo, RunResult
from hf_dumper.errors import DumpFormatError, DumpNotFoundError
from hf_dumper.store import DirectorySink, NativeReader
from hf_dumper.store.files import file_digest
from hf_dumper.store.findings import DAMAGED, INCOMPLETE, INTACT, UNCHECKED
from hf_dumper.store.verify import verify_dump
from tests.batches import BatchMaker

TREE = {"name": "root", "type": "Tiny", "children": []}
RANK = "runs/000000/rank-0"
FIRST, SECOND = f"{RANK}/shard-00000.safetensors", f"{RANK}/shard-00001.safetensors"


def forward(maker, number):
    """Return the batch of a forward: two tensors, an alias of the first, and a skipped one."""
    maker.begin(number, number, rows=1, cols=2)
    first = maker.add("a", torch.full((1, 2, 64), number + 1.0), axes="row,pos,-")
    maker.alias("b", first, slot="input.0")
    maker.add("b", torch.arange(32) + number)
    maker.skip("c", "sparse")
    return maker.end()


def write(path, *, forwards=3, shard_bytes=900, end=None, **options):
    """Write a dump of one run: a forward has 768 bytes, so each gets a shard of its own."""
    sink = DirectorySink(
        path, {"identity": {"class": "Tiny"}}, tree=TREE, shard_bytes=shard_bytes, **options
    )
    sink.open_run(RunInfo(-1, "generate"))
    maker = BatchMaker()
    for number in range(forwards):
        sink.write(forward(maker, number))
    if end is not None:
        sink.commit_run(end)
    return path


@pytest.fixture
def dump(tmp_path):
    return write(tmp_path / "dump", end=RunResult({}, {}))


def problems(dump):
    found = verify_dump(dump)
    assert found.verdict == DAMAGED
    return [str(problem) for problem in found.problems]


def the_problem(dump):
    (problem,) = problems(dump)
    return problem


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def edit(path, **values):
    """Change facts in a file, and the digest with them where it has one."""
    facts = json.loads(path.read_text("utf-8"))
    is_run = facts.pop(DIGEST, None) is not None
    facts |= values
    path.write_text(json.dumps(sealed(facts) if is_run else facts))


# --- what is right --------------------------------------------------------------------------------


def test_an_intact_dump_passes_and_says_what_was_hashed(dump):
    found = verify_dump(dump)
    assert (found.verdict, found.problems) == (INTACT, ())
    assert (found.records, found.hashed, found.skipped, found.bytes) == (12, 9, 3, 3 * 768)
    assert len(list((dump / RANK).glob("shard-*"))) == 3


def test_tensors_larger_than_a_block_are_hashed_block_by_block(dump, monkeypatch):
    monkeypatch.setattr("hf_dumper.store.verify_shards.BLOCK", 100)
    assert verify_dump(dump).verdict == INTACT


def test_progress_ends_at_the_bytes_of_all_tensors(dump):
    told = []
    verify_dump(dump, on_progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == 3 * 768
    assert told[-1][1] == sum(p.stat().st_size for p in (dump / RANK).glob("shard-*"))


def test_statistics_alone_are_not_called_intact(tmp_path):
    path = write(tmp_path / "dump", end=RunResult({}, {}), tensors=False, statistics=True)
    found = verify_dump(path)
    assert (found.verdict, found.hashed) == (UNCHECKED, 0)
    assert found.unchecked == {"only statistics were kept, no values": 9}


def test_a_dump_without_runs_is_not_called_intact(tmp_path):
    DirectorySink(tmp_path / "dump", {"identity": {}}, tree=TREE)
    assert verify_dump(tmp_path / "dump").verdict == UNCHECKED


# --- runs that are not whole ----------------------------------------------------------------------


def test_a_run_cut_off_is_verified_as_far_as_it_goes(tmp_path):
    found = verify_dump(write(tmp_path / "dump"))
    assert (found.verdict, found.hashed, found.problems) == (INCOMPLETE, 9, ())
    assert found.incomplete == {0: "it was cut off before its end"}


def test_damage_in_a_run_cut_off_is_found(tmp_path):
    path = write(tmp_path / "dump")
    last = NativeReader(path).index(0).to_pylist()[-2]  # the file goes on: to a whole page
    flip(path / RANK / "shard-00002.partial", last["offset"])
    assert the_problem(path).startswith(f"{RANK}/shard-00002.partial: '2/b:output:0': its bytes")


def test_a_run_that_says_it_is_incomplete_is_not_called_intact(tmp_path):
    path = write(tmp_path / "dump", end=RunResult({}, {}, incomplete="RuntimeError: no"))
    found = verify_dump(path)
    assert (found.verdict, found.incomplete) == (INCOMPLETE, {0: "RuntimeError: no"})


def test_without_run_json_a_run_is_incomplete(dump):
    (dump / "runs/000000/run.json").unlink()
    assert verify_dump(dump).verdict == INCOMPLETE


# --- shards ---------------------------------------------------------------------------------------


def test_a_flipped_byte_names_file_and_tensor(dump):
    flip(dump / FIRST, -1)
    assert the_problem(dump) == (
        f"{FIRST}: '0/b:output:0': its bytes do not have the hash of the index"
    )
    assert verify_dump(dump).hashed == 8


def test_an_alias_of_a_damaged_tensor_is_not_counted_as_hashed(dump):
    flip(dump / FIRST, -300)
    assert the_problem(dump).startswith(f"{FIRST}: '0/a:output:0': its bytes")
    assert verify_dump(dump).hashed == 7


def test_every_flipped_byte_of_a_shard_is_found(dump):
    """The length of the header, the header, its padding and the data: a sample of all."""
    shard = dump / FIRST
    whole = shard.read_bytes()
    for offset in [*range(9), *range(9, len(whole), 37), len(whole) - 1]:
        flip(shard, offset)
        assert verify_dump(dump).verdict == DAMAGED, offset
        shard.write_bytes(whole)
    assert verify_dump(dump).verdict == INTACT


def test_a_cut_shard_says_where_it_ends(dump):
    shard = dump / SECOND
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-10])
    assert the_problem(dump) == (
        f"{SECOND}: '1/b:output:0': the file is cut: "
        f"it ends at byte {size - 10}, and its tensors at {size}"
    )


def test_a_shard_cut_inside_its_header_is_named(dump):
    (dump / SECOND).write_bytes((dump / SECOND).read_bytes()[:50])
    first, second = problems(dump)
    assert first == (
        f"{SECOND}: the file is cut or its header damaged: 50 bytes, and a header of 8192"
    )
    assert second.startswith(f"{SECOND}: '1/a:output:0' and 1 more: the file is cut")


def test_bytes_after_the_last_tensor_are_found(dump):
    with (dump / FIRST).open("ab") as file:
        file.write(b"more")
    assert the_problem(dump) == f"{FIRST}: 4 bytes follow its last tensor"


def test_a_missing_shard_names_what_it_held(dump):
    (dump / FIRST).unlink()
    assert the_problem(dump) == f"{FIRST}: '0/a:output:0' and 1 more: the file is missing"


def test_swapped_shards_are_told_as_such(dump):
    aside = dump / "aside"
    (dump / FIRST).rename(aside)
    (dump / SECOND).rename(dump / FIRST)
    aside.rename(dump / SECOND)
    first, second = problems(dump)
    assert first.startswith(f"{FIRST}: '0/a:output:0' and 1 more: it holds the tensors of ")
    assert first.endswith("shard-00001.safetensors")
    assert second.endswith("it holds the tensors of shard-00000.safetensors")


def test_a_stray_shard_is_found(dump):
    shutil.copy(dump / FIRST, dump / RANK / "shard-00007.safetensors")
    assert the_problem(dump) == (
        f"{RANK}/shard-00007.safetensors: it is a stray: the index does not name it"
    )


def test_a_link_out_of_the_dump_is_not_followed(dump, tmp_path):
    (dump / FIRST).rename(tmp_path / "elsewhere")
    (dump / FIRST).symlink_to(tmp_path / "elsewhere")
    assert the_problem(dump).endswith("it is a link that leaves the dump")


# --- tables and facts -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["index.parquet", "positions.parquet"])
def test_every_flipped_byte_of_a_table_is_found(dump, name):
    table = dump / RANK / name
    whole = table.read_bytes()
    missed = []
    for offset in range(0, len(whole), 61):
        flip(table, offset)
        if verify_dump(dump).verdict != DAMAGED:
            missed.append(offset)
    assert missed == []


@pytest.mark.parametrize("name", ["index.parquet", "positions.parquet"])
def test_a_missing_table_is_named(dump, name):
    (dump / RANK / name).unlink()
    assert f"{RANK}/{name}: it is missing" in problems(dump)


def rehash(dump):
    """Let run.json say that the tables are as they are now, as if they had been written so."""
    files = sorted((dump / RANK).glob("*.parquet"))
    edit(dump / "runs/000000/run.json", tables={f"rank-0/{f.name}": file_digest(f) for f in files})


def rewrite(dump, column, change):
    """Write the index with one column changed by a function of its list."""
    file = dump / RANK / "index.parquet"
    table = pq.read_table(file)
    values = change(table.column(column).to_pylist())
    place = table.schema.get_field_index(column)
    field = table.schema.field(column)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), file)
    rehash(dump)


def swap_first(values):
    return [values[2], values[1], values[0], *values[3:]]


@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("hash", lambda v: [1, *v[1:]], "'0/a:output:0': its bytes do not have the hash"),
        ("hash", lambda v: [None, *v[1:]], "has no hash of them"),
        ("tensor", swap_first, "the header of the shard does not have it as the index has"),
        ("module", lambda v: ["z", *v[1:]], "'0/z:output:0': its tensor is called '0/a:output:0'"),
        ("run", lambda v: [5] * len(v), "it has rows of run [5], not of 0"),
        ("shape", lambda v: [[3], *v[1:]], "float32 [3] does not have 512 bytes"),
        ("status", lambda v: ["kept", *v[1:]], "the index gives it the status 'kept'"),
        ("reason", lambda v: [*v[:3], "", *v[4:]], "it was skipped, but has bytes or no reason"),
        ("nbytes", lambda v: [v[0], 1, *v[2:]], "float32 [1, 2, 64] does not have 1 bytes"),
        ("shard", lambda v: ["../up.safetensors", *v[1:]], "which is no name of a shard"),
        ("forward", lambda v: [9, *v[1:]], "it lacks forwards that the index has: [9]"),
    ],
)
def test_a_wrong_value_in_the_index_is_told(dump, column, change, said):
    rewrite(dump, column, change)
    assert any(said in line for line in problems(dump)), problems(dump)


def test_a_record_that_is_there_twice_is_told(dump):
    rewrite(dump, "module", lambda v: ["b" if m == "a" else m for m in v])
    assert any("'0/b:output:0' and 2 more: the index has it more" in p for p in problems(dump))


def test_an_alias_of_nothing_is_told(dump):
    rewrite(dump, "tensor", lambda v: [v[0], "0/gone:output:0", *v[2:]])
    assert the_problem(dump).endswith("'0/b:input.0:0': it is an alias of no record of its forward")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"records": {"stored": 5, "aliased": 3, "skipped": 3}}, "its 'records' says"),
        ({"bytes": 7}, "its 'bytes' says 7, and the index has 2304"),
        ({"forwards": 2}, "its 'forwards' says 2, and the tables have 3"),
        ({"forwards": 4}, "its 'forwards' says 4, and the tables have 3"),
        ({"tokens": 9}, "its 'tokens' says 9, and the tables have 3"),
        ({"counts": {"stored": 1}}, "its 'counts' says {'stored': 1}"),
        ({"run": 3}, "it is that of run 3"),
    ],
)
def test_a_wrong_count_is_told(dump, facts, said):
    edit(dump / "runs/000000/run.json", **facts)
    assert the_problem(dump).startswith(f"runs/000000/run.json: {said}")


def test_a_hole_in_the_positions_is_told(dump):
    file = dump / RANK / "positions.parquet"
    pq.write_table(pq.read_table(file).slice(1), file)
    rehash(dump)
    assert the_problem(dump) == (
        f"{RANK}/positions.parquet: forward 0 is no whole grid of rows and columns"
    )


@pytest.mark.parametrize("name", ["manifest.json", "model_tree.json", "runs/000000/run.json"])
def test_damaged_json_is_told(dump, name):
    file = dump / name
    file.write_text(file.read_text("utf-8")[:-3])
    assert the_problem(dump).startswith(f"{name}: is damaged")


def test_facts_of_the_manifest_are_held_against_their_hash(dump):
    edit(dump / "manifest.json", config={"layers": 2})
    assert the_problem(dump) == "manifest.json: its config does not have its config_hash"


def test_a_missing_tree_is_told(dump):
    (dump / "model_tree.json").unlink()
    assert the_problem(dump) == "model_tree.json: is missing"


# --- what is no dump ------------------------------------------------------------------------------


def test_nothing_and_no_dump_are_errors(tmp_path):
    with pytest.raises(DumpNotFoundError):
        verify_dump(tmp_path / "nothing")
    with pytest.raises(DumpFormatError, match="no dump"):
        verify_dump(tmp_path)


def test_an_unknown_version_is_an_error(dump):
    edit(dump / "manifest.json", format_version=99)
    with pytest.raises(DumpFormatError, match="format_version 99"):
        verify_dump(dump)


def test_every_changed_fact_of_a_run_is_found(dump):
    file = dump / "runs/000000/run.json"
    file.write_text(file.read_text("utf-8").replace('"kind": "generate"', '"kind": "generated"'))
    assert the_problem(dump) == (
        "runs/000000/run.json: its facts do not have the digest that it carries"
    )
