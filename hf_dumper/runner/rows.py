"""Rows of a data set through a dumped model; a second start goes on where the first one ended."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PreTrainedModel

from hf_dumper.errors import HFDumperError, PromptError
from hf_dumper.prompts import Prompt, PromptRow, PromptRows, encode, pad
from hf_dumper.runner.failures import RowFailure, note_failure
from hf_dumper.runner.finished import FinishedRows, plain
from hf_dumper.runner.prompts import (
    OnToken,
    PromptResult,
    can_generate,
    generate_or_forward,
    measured,
)

if TYPE_CHECKING:
    from hf_dumper.session import DumpSession


class _Waiting:
    """A row that is to be run, as tensors [1, length]."""

    def __init__(self, row: PromptRow, prompt: Prompt, inputs: Mapping[str, torch.Tensor]) -> None:
        self.number = row.number
        self.prompt = prompt
        self.inputs = inputs


def numbered_rows(
    rows: Iterable[PromptRow], process: int = 0, processes: int = 1
) -> Iterator[PromptRow]:
    """Yield the rows that are this process's, every `processes`-th; each keeps its number."""
    return islice(rows, process, None, processes)


def dump_rows(
    model: PreTrainedModel,
    tokenizer: Any,
    rows: PromptRows,
    *,
    max_new_tokens: int,
    batch_size: int = 1,
    chat: bool = False,
    **generate_kwargs: Any,
) -> list[PromptResult]:
    """Dump the rows of a data set that the model's dump does not hold yet; see `RowRunner`.

    Raises:
        PromptError: no run could be made of some rows; all others are done by then.
    """
    kwargs = {"max_new_tokens": max_new_tokens, **generate_kwargs}
    runner = RowRunner(model, tokenizer, batch_size=batch_size, chat=chat, **kwargs)
    results = list(runner.each(rows, rows.name, rows.facts))
    if runner.failures:
        first, count = runner.failures[0], len(runner.failures)
        msg = f"{count} of the rows of {rows.name} failed, row {first.row} first: {first.error}"
        raise PromptError(msg)
    return results


class RowRunner:
    """Makes a run of each row, or of `batch_size` rows, in the dump of a model.

    The number of a run is that of its row, or of the first of its rows; `run.json` names them all,
    under "prompt", "source". The rows of a batch are padded: on the left where the model generates,
    so that each goes on from its end.

    A row whose run is complete in the dump is skipped; a run that is not complete is removed and
    made again. A row that fails is noted in `failures.jsonl` in the dump and left out; a batch that
    fails is done row by row, so that only the rows at fault are. What is wrong with the dump itself
    ends the loop.

    Attributes:
        skipped: How many rows were there already.
        failures: The rows that failed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        batch_size: int = 1,
        chat: bool = False,
        on_progress: OnToken | None = None,
        **generate_kwargs: Any,
    ) -> None:
        """Take what `generate()` takes besides; `on_progress` is told how many rows are done."""
        self.skipped = 0
        self.failures: list[RowFailure] = []
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._chat = chat
        self._on_progress = on_progress
        self._kwargs = generate_kwargs
        self._done = 0

    @property
    def handled(self) -> int:
        """How many rows are behind us, be they done, skipped or failed."""
        return self.skipped + len(self.failures) + self._done

    @property
    def replaced(self) -> int:
        """How many runs that were not complete were removed to be made again."""
        return 0 if self._finished is None else self._finished.replaced

    _finished: FinishedRows | None = None
    _is_prepared = False

    def first(self, rows: Iterable[PromptRow]) -> dict[str, torch.Tensor]:
        """Return the first batch as tensors [rows, length], whatever the dump holds.

        Raises:
            PromptError: no row holds a prompt.
        """
        waiting: list[_Waiting] = []
        error: PromptError | None = None
        for row in rows:
            try:
                waiting.append(self._encoded(row))
            except PromptError as reason:
                error = error or reason
            if len(waiting) == self._batch_size:
                break
        if not waiting:
            raise error or PromptError("There are no rows.")
        return self._padded(waiting)

    def prepare(self) -> None:
        """Look at what the dump holds, before any other process of a launch adds to it."""
        self._session = cast("DumpSession", self._model.dump)
        self._finished = FinishedRows(self._session.path)
        self._is_prepared = True

    def each(
        self, rows: Iterable[PromptRow], name: str, facts: Mapping[str, Any] | None = None
    ) -> Iterator[PromptResult]:
        """Yield what became of each row when its run is on disk.

        `name` is that of the source, `facts` are those of `PromptRows`: what further runs of the
        dump must be of as well, so that a number is that of one row.

        Raises:
            PromptError: the source cannot be read any further.
            DumpIdentityError: the dump holds runs of other prompts under the rows' numbers, or of
                another data set.
        """
        if not self._is_prepared:
            self.prepare()
        self._is_prepared = False
        finished = cast("FinishedRows", self._finished)
        self._source = {"name": name, **(facts or {}), "generate": plain(self._kwargs)}
        waiting = self._waiting(rows, finished)
        while batch := list(islice(waiting, self._batch_size)):
            finished.check_source(self._source)
            yield from self._attempted(batch, finished)

    def _waiting(self, rows: Iterable[PromptRow], finished: FinishedRows) -> Iterator[_Waiting]:
        for row in rows:
            try:
                found = self._encoded(row)
            except PromptError as error:
                self._fail(row.number, error)
                continue
            ids = found.inputs["input_ids"][0].tolist()
            if finished.holds(row.number, ids, self._kwargs):
                self.skipped += 1
            else:
                yield found

    def _encoded(self, row: PromptRow) -> _Waiting:
        prompt = row.taken()
        return _Waiting(row, prompt, encode(self._tokenizer, prompt, self._chat))

    def _attempted(
        self, batch: Sequence[_Waiting], finished: FinishedRows
    ) -> Iterator[PromptResult]:
        finished.free(batch[0].number)
        try:
            results = self._run(batch)
        except HFDumperError:
            raise
        except Exception as error:  # whatever a model does with one prompt, the others may do well
            if len(batch) == 1:
                self._fail(batch[0].number, error)
            else:
                for one in batch:
                    yield from self._attempted([one], finished)
            return
        self._done += len(batch)
        yield from results

    def _run(self, batch: Sequence[_Waiting]) -> list[PromptResult]:
        model, inputs = self._model, self._padded(batch)
        facts = {**self._source, "rows": [row.number for row in batch]}
        self._session.number_next(batch[0].number, facts)
        told = None if self._on_progress is None else partial(self._tell, len(batch))
        number, ids, seconds = measured(
            model, partial(generate_or_forward, model, inputs, self._kwargs, told)
        )
        answers = [None] * len(batch) if ids is None else self._answers(ids, len(batch))
        return [
            PromptResult(
                number,
                row.prompt,
                None if answer is None else self._tokenizer.decode(answer),
                0 if answer is None else len(answer),
                seconds,
                row.number,
            )
            for row, answer in zip(batch, answers, strict=True)
        ]

    def _padded(self, batch: Sequence[_Waiting]) -> dict[str, torch.Tensor]:
        config = getattr(self._model, "generation_config", None)
        known = (
            getattr(self._tokenizer, "pad_token_id", None),
            getattr(config, "pad_token_id", None),
        )
        # Masked, so any id does that has an embedding; that of an added token may have none.
        most = getattr(self._model.get_input_embeddings(), "num_embeddings", None)
        fit = (i for i in known if i is not None and 0 <= i < (i + 1 if most is None else most))
        token = next(fit, 0)
        is_pair = getattr(self._model.config, "is_encoder_decoder", False)
        left = can_generate(self._model) and not is_pair
        return pad([row.inputs for row in batch], token, left=left)

    def _answers(self, ids: torch.Tensor, rows: int) -> Iterator[torch.Tensor]:
        """Yield the new ids of the first sequence of each row, up to where it ended."""
        ends = getattr(self._model.generation_config, "eos_token_id", None)
        wanted = torch.tensor([] if ends is None else ends, dtype=ids.dtype, device=ids.device)
        for answer in ids[:: len(ids) // rows]:
            at = torch.isin(answer, wanted).nonzero()
            yield answer[: int(at[0]) + 1] if len(at) else answer

    def _tell(self, rows: int, tokens: int) -> None:
        if self._on_progress is not None:
            self._on_progress(self.handled, rows * tokens)

    def _fail(self, row: int, error: Exception) -> None:
        failure = RowFailure.of(row, error)
        self.failures.append(failure)
        note_failure(self._session.path, failure)
