"""What a dump keeps beside its records, wherever its layout has it."""

from pathlib import Path

import pyarrow as pa

from hf_dumper.store.open import open_dump
from hf_dumper.store.reader import NativeReader
from hf_dumper.store.tables import write_parquet
from hf_dumper.store.trace import PREDICTIONS

TOKENIZER = "tokenizer"


def tokenizer_folder(dump: Path) -> Path | None:
    """Return the folder with the tokenizer of a dump, None without one.

    In msit's layout it lies in every run.
    """
    places = (place / TOKENIZER for place in (dump, *sorted(dump.glob("msit_dump_*"))))
    return next(filter(Path.is_dir, places), None)


def read_predictions(dump: Path, run: int) -> pa.Table | None:
    """Read what the model predicts inside the prompt of a run, None where nobody asked for it.

    Raises:
        DumpFormatError: the file is damaged.
    """
    with open_dump(dump) as reader:
        return reader.predictions(run) if isinstance(reader, NativeReader) else None


def write_predictions(dump: Path, run: int, table: pa.Table) -> None:
    """Keep what the model predicts inside the prompt of a run; `table` is of that schema.

    Raises:
        TypeError: the dump is none of ours.
    """
    with open_dump(dump) as reader:
        if not isinstance(reader, NativeReader):
            msg = f"{type(reader).__name__} keeps no predictions."
            raise TypeError(msg)
        write_parquet(reader.facts_folder(run) / PREDICTIONS, table)
