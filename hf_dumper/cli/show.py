"""`hf-dumper show`: one module of a dump, or one of its tensors."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_dumper.cli.failures import DONE
from hf_dumper.cli.flat import flat
from hf_dumper.cli.inspect import Run, Token, as_dict, first_run, first_token, open_indexed
from hf_dumper.cli.options import Dump, Json
from hf_dumper.cli.terminal import print_json, stdout
from hf_dumper.errors import KeyNotFoundError

if TYPE_CHECKING:
    import torch

    from hf_dumper.report.terminal import Entry, IndexedReader


@dataclass(frozen=True)
class Choice:
    """Which tensor of a module."""

    slot: Annotated[
        str | None,
        typer.Option(help="Which tensor, such as output.", show_default="a list of them"),
    ] = None
    token: Token = None
    run: Run = None
    call: Annotated[int, typer.Option(min=0, help="Which call of the module.")] = 0
    row: Annotated[int | None, typer.Option(min=0, help="One row of the batch.")] = None


Module = Annotated[
    str, typer.Argument(help='Name of a module, "root" for the outermost.', show_default=False)
]


@flat
def show(
    dump: Dump,
    module: Module,
    which: Choice,
    values: Annotated[bool, typer.Option("--values", help="Print every value.")] = False,
    json: Json = False,
) -> int:
    """Show the tensors of a module; with --slot one of them, its statistics and its values."""
    with open_indexed(dump) as reader:
        found = _find(reader, module, which)
        if which.slot is None and not values:
            _show_module(found, as_json=json)
            return DONE
        if which.slot is None:
            msg = f"Which tensor? Add --slot with one of {_slots(found)}."
            raise KeyNotFoundError(msg)
        entry, tensor = _tensor(reader, found, which)
        if json:
            facts = as_dict(entry)
            print_json({**facts, "values": _numbers(tensor)} if values else facts)
        else:
            from hf_dumper.report.terminal import tensor as shown

            stdout().print(shown(entry, tensor, whole=values), soft_wrap=True)
    return DONE


def _show_module(found: "list[Entry]", *, as_json: bool) -> None:
    if as_json:
        print_json([as_dict(entry) for entry in found])
        return
    from hf_dumper.report.terminal import module

    console = stdout()
    console.print(module(found))
    stored = [entry for entry in found if entry.owner is not None]
    if stored:
        console.print(f"--slot {stored[-1].slot} shows one tensor and its values.", style="dim")


def _find(reader: "IndexedReader", module: str, which: Choice) -> "list[Entry]":
    """Return the records of a module, of one slot and call where that is asked for.

    Raises:
        KeyNotFoundError: there are none; the message names what comes nearest.
    """
    from hf_dumper.core.names import near
    from hf_dumper.core.selection import canonical
    from hf_dumper.report.terminal import entries

    run = first_run(reader, which.run)
    if run is None:
        msg = f"There are no runs in {reader.path}."
        raise KeyNotFoundError(msg)
    token = first_token(reader, run, which.token)
    name = canonical(module)
    found = entries(reader, run, token, modules=[name])
    where = f"token {token} of run {run}"
    if not found:
        known = reader.index(run).column("module").unique().to_pylist()
        hint = f" {name!r} ran for other tokens." if name in known else near(name, known)
        msg = f"There is no module {module!r} in {where}.{hint}"
        raise KeyNotFoundError(msg)
    if which.slot is None:
        return found
    chosen = [e for e in found if e.slot == which.slot and e.key.call == which.call]
    if not chosen:
        called = f" call {which.call}" if which.call else ""
        msg = f"{name!r} has no {which.slot!r}{called} in {where}. Known: {_slots(found)}."
        raise KeyNotFoundError(msg)
    return chosen


def _slots(found: "list[Entry]") -> str:
    from hf_dumper.report.tree import label

    return ", ".join(dict.fromkeys(map(label, found)))


def _tensor(
    reader: "IndexedReader", found: "list[Entry]", which: Choice
) -> "tuple[Entry, torch.Tensor | None]":
    """Return a record and its values, those of one row or of all forwards of the token joined."""
    from hf_dumper.core.statistics import describe

    entry = found[0]
    if entry.owner is None:
        return entry, None
    key = entry.key
    tensor = reader.load(
        key.module, key.slot, entry.token, run=key.run, call=key.call, row=which.row
    )
    statistics = describe([tensor])[0]
    if statistics is not None:
        entry = entry._replace(statistics=statistics._asdict())
    return entry._replace(shape=list(tensor.shape), nbytes=tensor.nbytes), tensor


def _numbers(tensor: "torch.Tensor | None") -> Any:
    if tensor is None:
        return None
    import torch

    if tensor.is_complex():
        return torch.view_as_real(tensor).tolist()
    return tensor.tolist()
