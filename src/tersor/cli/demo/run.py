# SPDX-License-Identifier: Apache-2.0
"""Run the demo: tables on the terminal; files, a picture and a report in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import nn

from tersor.cli.demo import curves, digits, search
from tersor.cli.demo.digits import Row, Split, measure
from tersor.cli.output import say
from tersor.errors import MissingExtraError
from tersor.io import save
from tersor.report import html
from tersor.report.facts import gather
from tersor.units import format_size


def run(folder: Path, console: Console) -> None:
    """Run the demo.

    Parameters
    ----------
    folder
        Folder for the files, which is made if there is none.
    console
        Console to print to.

    Raises
    ------
    MissingExtraError
        If a package is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _classify(folder, console)
    try:
        weights = search.model_folder() / "model.safetensors"
    except MissingExtraError as error:
        say(f"search by meaning is left out: {error}", console)
    else:
        _search(folder, weights, console)


def _classify(folder: Path, console: Console) -> None:
    """Train, compress, fine-tune and compare a small network."""
    torch.manual_seed(digits.SEED)
    data, dense, checkpoint = digits.digits(), digits.Network(), folder / "digits.safetensors"
    say("training a small network on handwritten digits ...", console)
    digits.train(dense, data, epochs=digits.DENSE_EPOCHS, rate=0.01)
    save_file(dense.state_dict(), checkpoint)
    first, *rows = _rows(folder, dense, data, console)
    last = rows.pop()
    console.print("", table([first, rows[0], rows[-1], last]), "")
    say("comparing with other methods ...", console)
    found = {"tersor": rows} | curves.baseline_curves(dense, data, checkpoint)
    console.print("", curves.table(found), "")
    curves.draw(found | {"tersor, fine-tuned": [last]}, first, folder / "accuracy.png")
    say(f"picture: {folder / 'accuracy.png'}", console)
    facts = gather(folder / f"digits{curves.RATIOS[0]}.tersor", checkpoint)
    html.write(folder / "digits.html", facts, curves.as_curve(rows, first))
    say(f"report: {folder / 'digits.html'}", console)


def _search(folder: Path, weights: Path, console: Console) -> None:
    """Search with a pretrained sentence encoder before and after compression."""
    search.quiet()
    say("\nsearching with a pretrained sentence encoder ...", console)
    model = search.encoder()
    dense = search.search(model)
    say(f"compressing it {search.RATIO} times ...", console)
    size = save(search.compressed(model), path := folder / "encoder.tersor").nbytes
    say("searching with the file, in a fresh process ...", console)
    small = search.search_with_file(path)
    titles = [
        f"{when}, {format_size(n)}"
        for when, n in (("as trained", weights.stat().st_size), ("from the file", size))
    ]
    console.print("", search.table(dense, small, titles), "")
    say(search.verdict(dense, small), console)
    html.write(folder / "encoder.html", gather(path))
    say(f"report: {folder / 'encoder.html'}", console)


def _rows(folder: Path, dense: nn.Module, data: Split, console: Console) -> Iterator[Row]:
    """Write a file for each ratio and a fine-tuned one, and yield what they and the dense have."""
    yield measure("as trained", folder / "digits.safetensors")
    for ratio in curves.RATIOS:
        say(f"compressing it {ratio} times ...", console)
        model = digits.compressed(dense, ratio, data)
        save(model, path := folder / f"digits{ratio}.tersor")
        yield measure(f"{ratio} times smaller", path)
    say("fine-tuning the smallest ...", console)
    save(digits.finetuned(model, dense, data), path := folder / "digits_finetuned.tersor")
    yield measure("the same, fine-tuned", path)


def table(rows: Sequence[Row]) -> Table:
    """Return a table of sizes, ratios and accuracies. The first row is the dense model."""
    result = Table(title="From the files, in fresh processes", title_justify="left", box=None)
    result.add_column("model")
    for column in ("bytes", "ratio", "accuracy, %"):
        result.add_column(column, justify="right")
    for row in rows:
        ratio = f"{rows[0].nbytes / row.nbytes:.1f}"
        result.add_row(row.model, str(row.nbytes), ratio, f"{row.accuracy:.1f}")
    return result
