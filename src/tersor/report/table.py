"""Reports as tables for a terminal, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tersor.plan.budget import format_size
from tersor.storage.summary import Report, TensorSummary, kept_groups
from tersor.text import printable

if TYPE_CHECKING:
    from tersor.optimize import Optimized


def render(report: Report, chosen: Optimized | None = None) -> RenderableType:
    """Factored tensors, kept tensors, the total, and how weights are computed with."""
    parts: list[RenderableType] = []
    if report.factored:
        parts.append(_factored(report.factored))
    kept = kept_groups(report)
    if kept:
        parts.append(_kept(kept))
    parts += [Text(line) for line in told(report)]
    parts.append(Text(total(report)))
    if chosen is not None:
        parts.append(_forms(chosen))
        parts.append(Text(f"in memory {format_size(chosen.nbytes)}"))
    return Group(*parts)


def told(report: Report) -> list[str]:
    """What the file says of itself, a line each."""
    lines = [f"{printable(key)}: {printable(text)}" for key, text in report.metadata.items()]
    hashes = [] if report.content_hash is None else [f"content hash: {report.content_hash}"]
    return lines + hashes


def total(report: Report) -> str:
    """The size of the file, its ratio and bits per weight, in one line."""
    return (
        f"{report.nbytes} bytes ({format_size(report.nbytes)}) from {report.source_bytes} "
        f"({format_size(report.source_bytes)}): {report.ratio:.2f} times smaller, "
        f"{report.bits_per_weight:.3f} bits per weight{', lossless' if report.lossless else ''}"
    )


def _factored(tensors: tuple[TensorSummary, ...]) -> Table:
    table = Table(title="Stored as factors", title_justify="left", box=None)
    table.add_column("tensor", overflow="fold")
    for column in ("shape", "tile", "rank", "bits/weight", "bytes", "SNR dB"):
        table.add_column(column, justify="right", no_wrap=True)
    for t in tensors:
        snr = "-" if t.snr is None else f"{t.snr:.1f}"
        numbers = (str(t.tile), str(t.rank), f"{t.bits_per_weight:.2f}", str(t.nbytes), snr)
        table.add_row(_name(t.name), _shape(t), *numbers)
    return table


def _kept(groups: list[tuple[str, tuple[TensorSummary, ...]]]) -> Table:
    table = Table(title="Kept (bytes before compression)", title_justify="left", box=None)
    table.add_column("tensors", overflow="fold")
    for column in ("number", "type", "bytes"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("how, and why")
    for name, members in groups:
        size = str(sum(t.nbytes for t in members))
        row = (str(len(members)), members[0].dtype, size, Text(printable(members[0].note)))
        table.add_row(_name(name), *row)
    return table


def _forms(chosen: Optimized) -> Table:
    table = Table(title="For inference on this machine", title_justify="left", box=None)
    table.add_column("tensor", overflow="fold")
    for column in ("form", "bytes", "dense", "us"):
        table.add_column(column, justify="right", no_wrap=True)
    for choice in chosen.choices:
        time = f"{1e6 * choice.seconds:.0f}" if choice.seconds else "-"
        numbers = (choice.mode, str(choice.nbytes), str(choice.dense_bytes), time)
        table.add_row(_name(choice.name), *numbers)
    return table


def _name(name: str) -> Text:
    """Name as it is, not as markup."""
    return Text(printable(name))


def _shape(tensor: TensorSummary) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def to_json(report: Report, chosen: Optimized | None = None) -> dict[str, Any]:
    """Report as plain data, with what is computed from it."""
    forms = {} if chosen is None else {"inference": [asdict(c) for c in chosen.choices]}
    tensors = [asdict(t) | {"bits_per_weight": t.bits_per_weight} for t in report.tensors]
    return {
        "nbytes": report.nbytes,
        "source_bytes": report.source_bytes,
        "ratio": report.ratio,
        "weights": report.weights,
        "bits_per_weight": report.bits_per_weight,
        "lossless": report.lossless,
        "metadata": dict(report.metadata),
        "content_hash": report.content_hash,
        "tensors": tensors,
    } | forms
