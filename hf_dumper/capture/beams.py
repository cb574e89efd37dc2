"""Which sequence each row of a forward continues, where rows change places: beam search.

A row is known by its token prefix. `generate()` shows the sequences of all rows to its logits
processors after every forward; a row's parent is the row of the token before that had the same
sequence less the last id. Rows with one prefix are one and the same: the first of them stands for
all. Rows of different prompts are never taken for each other.
"""

from collections.abc import Sequence
from typing import Any

import torch

from hf_dumper.errors import CaptureError


class BeamRows:
    """Follows the sequences of one generation with `count` rows for each prompt."""

    def __init__(self, count: int) -> None:
        """Know of no rows yet."""
        self.count = count
        self._known: dict[tuple[int, tuple[int, ...]], int] = {}
        self._steps: list[tuple[list[int], list[int]]] = []  # per token: parents, last ids

    def see(self, ids: torch.Tensor) -> list[int]:
        """Take the ids [rows, length] that a forward continued; return the parent of each row.

        The parents of the first token are the rows themselves.

        Raises:
            CaptureError: a row continues nothing that was there.
        """
        sequences = [tuple(row) for row in ids.tolist()]
        items = [row // self.count for row in range(len(sequences))]
        parents = [
            self._parent(item, row, ids)
            for row, (item, ids) in enumerate(zip(items, sequences, strict=True))
        ]
        self._known = {}
        for row, key in enumerate(zip(items, sequences, strict=True)):
            self._known.setdefault(key, row)
        self._steps.append((parents, [ids[-1] if ids else -1 for ids in sequences]))
        return parents

    def _parent(self, item: int, row: int, ids: tuple[int, ...]) -> int:
        if not self._steps:
            return row
        parent = self._known.get((item, ids[:-1]))
        if parent is None:
            msg = f"Row {row} continues a sequence that no row had a token ago; it is not followed."
            raise CaptureError(msg)
        return parent

    def paths(self, generated: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return, for each row of generated ids, which row of each token's forward led to it.

        A path is as long as its row's own tokens: what fills it up behind its end has none.
        """
        if not self._steps:
            return [[] for _ in generated]
        items = len(self._steps[0][0]) // self.count
        per_item = max(1, len(generated) // items)
        return [self._path(row // per_item, list(ids)) for row, ids in enumerate(generated)]

    def _path(self, item: int, ids: Sequence[int]) -> list[int]:
        rows = range(item * self.count, (item + 1) * self.count)
        path = [rows[0]]
        for (parents, last), id_ in zip(self._steps[1:], ids[:-1], strict=False):
            node = next((r for r in rows if parents[r] == path[-1] and last[r] == id_), None)
            if node is None:
                break
            path.append(node)
        return path


def beam_facts(beams: BeamRows, result: Any, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Describe the sequences that `generate()` returned, JSON-ready.

    `rows` are for each of them the rows of the forwards of its tokens, `scores` as `generate()`
    returned them, None where it was not asked to.
    """
    scores = getattr(result, "sequences_scores", None)
    return {
        "beams": beams.count,
        "rows": beams.paths(ids),
        "scores": None if scores is None else scores.tolist(),
    }
