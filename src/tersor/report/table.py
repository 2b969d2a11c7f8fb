# SPDX-License-Identifier: Apache-2.0
"""Render reports as tables for a terminal, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tersor.report.breaking import Name
from tersor.report.words import decibels
from tersor.storage import doubts, label
from tersor.storage.summary import Report, TensorSummary, unfactored_groups
from tersor.text import printable
from tersor.units import format_size

if TYPE_CHECKING:
    from tersor.inference.optimize import Optimized


_EXAMPLES = 2
"""Number of names in a row about many tensors."""


def render(report: Report, chosen: Optimized | None = None) -> RenderableType:
    """Return tables of factored and unfactored tensors, the totals, and the forms for inference.

    Parameters
    ----------
    report
        Summary of a file.
    chosen
        Result of `tersor.optimize`; by default no forms are shown.
    """
    parts: list[RenderableType] = []
    if report.factored:
        parts.append(_factored(report.factored))
    if len(report.factored) < len(report.tensors):
        parts.append(_unfactored(report))
    parts += [Text(line) for line in told(report)]
    parts.append(Text(total(report)))
    parts += [Text(f"warning: {text}", style="yellow") for text in report.warnings]
    if chosen is not None:
        parts.append(_forms(chosen))
        parts.append(Text(f"in memory {format_size(chosen.nbytes)}"))
    return Group(*parts)


def told(report: Report) -> list[str]:
    """Return lines with the metadata of a file, its content hash, and the error of its outputs."""
    said = {k: v for k, v in report.metadata.items() if k != label.OUTPUT_ERROR}
    lines = [f"{printable(key)}: {printable(text)}" for key, text in said.items()]
    hashes = [] if report.content_hash is None else [f"content hash: {report.content_hash}"]
    error = doubts.differ(
        measured=report.output_error,
        predicted=report.predicted_error,
        calibrated=report.calibrated,
    )
    warned = any(error in text for text in report.warnings)
    return lines + hashes + ([error] if error and not warned else [])


def total(report: Report) -> str:
    """Return a line with the size of the file, its ratio and its bits per weight."""
    source = f"{report.source_bytes} ({format_size(report.source_bytes)})"
    return (
        f"{report.nbytes} bytes ({format_size(report.nbytes)}) from {source}: "
        f"{report.ratio:.2f} times smaller, {report.bits_per_weight:.3f} bits per weight"
        f"{', lossless' if report.lossless else ''}"
    )


def _factored(tensors: tuple[TensorSummary, ...]) -> Table:
    table = Table(title="Stored as factors", title_justify="left", box=None)
    table.add_column("tensor")
    for column in ("shape", "tile", "rank", "bits/weight", "bytes", "SNR dB"):
        table.add_column(column, justify="right", no_wrap=column != "bits/weight")
    for t in tensors:
        numbers = (str(t.tile), str(t.rank), f"{t.bits_per_weight:.2f}", str(t.nbytes))
        table.add_row(Name(printable(t.name)), _shape(t), *numbers, _ratio(t))
    return table


def _ratio(tensor: TensorSummary) -> Text:
    """Return the signal-to-noise ratio, with a mark if it is low."""
    low = tensor.snr is not None and tensor.snr < doubts.WEAK
    ratio = "-" if tensor.snr is None else decibels(tensor.snr)
    return Text(f"{'! ' if low else ''}{ratio}", style="yellow" if low else "")


def _unfactored(report: Report) -> Table:
    table = Table(title="Unfactored (bytes before compression)", title_justify="left", box=None)
    table.add_column("how, and why")
    for column in ("tensors", "bytes"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("such as")
    for note, groups in _reasons(report).items():
        members = [t for _, group in groups for t in group]
        patterns = [printable(pattern) for pattern, _ in groups]
        examples = ", ".join(patterns[:_EXAMPLES]) + (", ..." if patterns[_EXAMPLES:] else "")
        size = str(sum(t.nbytes for t in members))
        table.add_row(Text(printable(note)), str(len(members)), size, Name(examples))
    return table


def _reasons(report: Report) -> dict[str, list[tuple[str, tuple[TensorSummary, ...]]]]:
    """Return groups of unfactored tensors, by how and why they are stored so.

    All tensors that are the same as another one have one reason if there are several groups of
    them.
    """
    groups = unfactored_groups(report)
    ties = sum(members[0].note.startswith("same as") for _, members in groups)
    reasons: dict[str, list[tuple[str, tuple[TensorSummary, ...]]]] = {}
    for pattern, members in groups:
        note = members[0].note
        tied = ties > 1 and note.startswith("same as")
        reasons.setdefault("same as another" if tied else note, []).append((pattern, members))
    return reasons


def _forms(chosen: Optimized) -> Table:
    table = Table(title="For inference on this machine", title_justify="left", box=None)
    table.add_column("tensor")
    for column in ("form", "bytes", "dense", "us"):
        table.add_column(column, justify="right", no_wrap=True)
    for choice in chosen.choices:
        time = f"{1e6 * choice.seconds:.0f}" if choice.seconds else "-"
        numbers = (choice.mode, str(choice.nbytes), str(choice.dense_bytes), time)
        table.add_row(Name(printable(choice.name)), *numbers)
    return table


def _shape(tensor: TensorSummary) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def to_json(report: Report, chosen: Optimized | None = None) -> dict[str, Any]:
    """Return a report as plain data, including the numbers that are computed from it."""
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
        "output_error": report.output_error,
        "predicted_error": report.predicted_error,
        "warnings": list(report.warnings),
        "tensors": tensors,
    } | forms
