"""Beam search as a tree of prefixes: every row once, and every sequence found again."""

import pyarrow as pa

from hf_dumper.compare.prefixes import PrefixTree, prefix_trees

# Two rows: at token 1 both continue row 0; at token 2 row 0 continues 1, and row 1 continues 0.
STEPS = [{0: (0, 9), 1: (1, 9)}, {0: (0, 5), 1: (0, 6)}, {0: (1, 7), 1: (0, 8)}]
FORWARDS = {0: [0, 1], 1: [2], 2: [3]}
TREE = PrefixTree(STEPS, FORWARDS)


def test_branches_hold_every_row_of_every_forward_once():
    branches = list(TREE.branches())
    held = sorted((f, row) for _, at in branches for f, row in at.items())
    assert held == sorted((f, row) for f in range(4) for row in (0, 1))


def test_a_branch_is_the_ids_that_its_last_row_continues():
    found = {ids: at for ids, at in TREE.branches()}
    assert found[6, 7] == {3: 0, 2: 1, 0: 0, 1: 0}
    assert found[5, 8] == {3: 1, 2: 0}  # token 0 is held by the branch before
    assert found[()] == {0: 1, 1: 1}


def test_ids_are_followed_from_row_to_row():
    assert TREE.follow((6, 7), 0) == ({0: 0, 1: 0, 2: 1, 3: 0}, None)
    assert TREE.follow((5, 8, 1), 0) == ({0: 0, 1: 0, 2: 0, 3: 1}, None)


def test_ids_that_nobody_goes_on_with_end_where_they_part():
    assert TREE.follow((6, 1), 0) == ({0: 0, 1: 0, 2: 1}, 1)
    assert TREE.follow((4,), 0) == ({0: 0, 1: 0}, 0)


def test_of_rows_with_the_same_ids_the_like_one_is_taken():
    assert TREE.follow((), 1)[0] == {0: 1, 1: 1}
    assert TREE.follow((), 3)[0] == {0: 0, 1: 0}


def test_a_trace_makes_a_tree_for_each_prompt():
    rows = [
        {"token": t, "row": row + 2 * item, "parent": parent + 2 * item, "input_ids": [1, id_]}
        for t, step in enumerate(STEPS)
        for item in (0, 1)
        for row, (parent, id_) in step.items()
    ]
    trees = prefix_trees(pa.Table.from_pylist(rows), {0: 0, 1: 0, 2: 1, 3: 2}, 2)
    assert trees[0].follow((6, 7), 0) == TREE.follow((6, 7), 0)
    assert trees[1].follow((6, 7), 2) == ({0: 2, 1: 2, 2: 3, 3: 2}, None)


def test_a_trace_without_parents_makes_none():
    table = pa.table({"token": [0], "row": [0], "input_ids": [[1]]})
    assert prefix_trees(table, {0: 0}, 2) is None
