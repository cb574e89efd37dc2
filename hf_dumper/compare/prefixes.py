"""Beam search as a tree of token prefixes: which row of which forward continues which sequence.

The rows of a forward change places from token to token, so that a row number says nothing. What
the trace keeps of every row is which row of the token before it continues, and with which id.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

Ids = tuple[int, ...]


class PrefixTree:
    """The rows of one prompt in one run, by the generated ids that they continue.

    `steps` are per token the rows, each with its parent and the last id that went into it; a token
    has the forwards of `forwards`.
    """

    def __init__(
        self,
        steps: Sequence[Mapping[int, tuple[int, int]]],
        forwards: Mapping[int, Sequence[int]],
    ) -> None:
        """Work out the prefix of each row."""
        self._steps = steps
        self._forwards = forwards
        self._prefixes: list[dict[int, Ids]] = []
        for token, rows in enumerate(steps):
            before = self._prefixes[-1] if token else {}
            self._prefixes.append(
                {
                    row: (*before[parent], id_) if token else ()
                    for row, (parent, id_) in rows.items()
                }
            )
        self._rows: list[dict[Ids, list[int]]] = [{} for _ in steps]
        for rows_of, found in zip(self._rows, self._prefixes, strict=True):
            for row, prefix in found.items():
                rows_of.setdefault(prefix, []).append(row)

    def branches(self) -> Iterator[tuple[Ids, dict[int, int]]]:
        """Yield sequences that together hold every row of every forward once.

        Each with the ids that its last row continues, and the row that it has in each of its
        forwards. The longest come first; a shorter one ends where another one took its beginning.
        """
        left = [set(rows) for rows in self._steps]
        for token in reversed(range(len(left))):
            for row in sorted(left[token]):
                held: dict[int, int] = {}
                prefix = self._prefixes[token][row]
                node, t = row, token
                while t >= 0 and node in left[t]:
                    left[t].remove(node)
                    held |= dict.fromkeys(self._forwards.get(t, ()), node)
                    node, t = self._steps[t][node][0], t - 1
                yield prefix, held

    def follow(self, ids: Ids, like: int) -> tuple[dict[int, int], int | None]:
        """Return the row of each forward that continues these ids, and how many of them went in.

        The latter is None where all did, or as many as the run went on for. Of rows with the same
        ids the one with number `like` is taken, else the first.
        """
        held: dict[int, int] = {}
        for token, rows in enumerate(self._rows):
            if token > len(ids):
                break
            found = rows.get(ids[:token])
            if found is None:
                return held, token - 1
            row = like if like in found else found[0]
            held |= dict.fromkeys(self._forwards.get(token, ()), row)
        return held, None


def prefix_trees(
    trace: pa.Table, tokens: Mapping[int, int], beams: int
) -> tuple[PrefixTree, ...] | None:
    """Return the tree of each prompt of a run with beams; `tokens` are those of its forwards.

    None where the trace does not tell the parents of the rows.
    """
    if "parent" not in trace.column_names:
        return None
    columns = ("token", "row", "parent", "input_ids")
    rows = trace.select(columns).to_pylist()
    forwards: dict[int, list[int]] = {}
    for forward, token in tokens.items():
        forwards.setdefault(token, []).append(forward)
    steps: list[list[dict[int, tuple[int, int]]]] = []
    for row in rows:
        item = row["row"] // beams
        while len(steps) <= item:
            steps.append([])
        if len(steps[item]) <= row["token"]:
            steps[item].append({})
        steps[item][row["token"]][row["row"]] = row["parent"], _last(row)
    return tuple(PrefixTree(item, forwards) for item in steps)


def _last(row: Mapping[str, Any]) -> int:
    ids = row["input_ids"]
    return int(ids[-1]) if ids else -1
