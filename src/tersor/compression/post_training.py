# SPDX-License-Identifier: Apache-2.0
"""Compress a model with data: everything that lessens the loss without training, in order.

Normalisation is folded, moments and importance are measured, and after the bytes were given out
layers make up for each other's errors. Each of these steps is also a function of its own.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from torch import nn

from tersor.calibration.calibrate import Calibration, calibrate
from tersor.calibration.folding import fold_normalization
from tersor.calibration.normalization import match_normalization, normalizations
from tersor.calibration.output_error import held_out, output_error
from tersor.calibration.samples import NEEDED, arguments, batches_of, check_loader
from tersor.compression.effort import Effort
from tersor.compression.reconstruction import reconstruct
from tersor.errors import BudgetError, InputError, QualityWarning
from tersor.io import archive_of
from tersor.nn.fill import fill
from tersor.storage import label
from tersor.storage.archive import Alias, Archive, Entry

_PASSES = 4
"""Largest number of reconstructions."""

_GAIN = 0.98
"""Another reconstruction is tried if the last one lessened the squared error to less than this."""


@dataclass(frozen=True)
class PostTraining:
    """A dense model, and batches with which to lessen what its compression costs.

    Parameters
    ----------
    dense
        The dense model, with its normalisation folded where that changes nothing.
    batches
        Batches for calibration and reconstruction.
    held
        Other batches, to measure the error of the output.
    effort
        See `Effort`.
    output
        As for `tersor.calibrate`.
    """

    dense: nn.Module
    batches: list[Any]
    held: list[Any]
    effort: Effort
    output: Callable[[Any, Any], Any] | None = None

    def calibrate(self) -> Calibration:
        """Return the calibration of the dense model."""
        return calibrate(self.dense, self.batches, output=self.output)

    def mend(self, archive: Archive) -> Archive:
        """Return an archive whose layers compensate for each other, a little larger at most.

        Warns
        -----
        QualityWarning
            If the archive is returned as it is, because it would have become larger.
        """
        if self.effort == "fast":
            if not normalizations(self.dense):
                return archive
            return self._changed(archive, match_normalization)
        try:
            found = self._changed(archive, reconstruct)
            return found if self.effort == "balanced" else self._repeated(found)
        except BudgetError as error:
            text = f"layers are not reconstructed: {error}"
            warnings.warn(text, QualityWarning, stacklevel=2)
            return archive

    def error_of(self, archive: Archive) -> float | None:
        """Return the squared error of the outputs on held-out batches, None without batches.

        See `tersor.output_error`.
        """
        if not self.held:
            return None
        return output_error(compressed(archive, self.dense), self.dense, self.held)

    def _repeated(self, archive: Archive) -> Archive:
        """Reconstruct again as long as that helps on held-out batches."""
        error = self.error_of(archive)
        for _ in range(_PASSES - 1):
            again = self._changed(archive, reconstruct)
            before, error = error, self.error_of(again)
            if before is None or error is None or error >= before:
                break
            archive = again
            if error > _GAIN * before:
                break
        return archive

    def _changed(
        self, archive: Archive, change: Callable[[nn.Module, nn.Module, Iterable[Any]], None]
    ) -> Archive:
        """Return an archive of the compressed model after a change, with the same names."""
        model = compressed(archive, self.dense)
        change(model, self.dense, self.batches)
        found = archive_of(model).entries
        entries = {
            name: replace(entry, content=_content(found, name)) if name in found else entry
            for name, entry in archive.entries.items()
            if not isinstance(entry.content, Alias)
        }
        return replace(archive, entries={**archive.entries, **entries})


def prepare(
    model: nn.Module,
    data: Iterable[Any],
    effort: Effort = "balanced",
    output: Callable[[Any, Any], Any] | None = None,
) -> PostTraining:
    """Return what is needed to compress a model with data.

    Parameters
    ----------
    model
        The dense model. It is not changed.
    data
        Batches as for `tersor.calibrate`. An eighth of them is held out to measure the error.
    effort
        See `Effort`.
    output
        As for `tersor.calibrate`.

    Raises
    ------
    InputError
        If there are no batches, if the model cannot be called with them, or if there is no such
        effort.
    """
    if effort not in get_args(Effort):
        known = ", ".join(map(repr, get_args(Effort)))
        raise InputError(f"there is no effort {effort!r}; give one of {known}")
    check_loader(data)
    used, held = held_out(list(batches_of(data)))
    if not used:
        raise InputError(f"the loader is empty; {NEEDED} (a generator can be used only once)")
    return PostTraining(folded(model, used[0]), used, held, effort, output)


def folded(model: nn.Module, batch: Any) -> nn.Module:
    """Return a model whose normalisation statistics are folded, or the model itself.

    Parameters
    ----------
    model
        The dense model. It is not changed.
    batch
        A batch to find out which layers follow one another.

    Returns
    -------
    torch.nn.Module
        A folded copy. If there is nothing to fold, or if the outputs would change, the model.
    """
    if not any(layer.affine for layer in normalizations(model).values()):
        return model
    args, kwargs = arguments(model, batch)
    changed = copy.deepcopy(model)
    try:
        fold_normalization(changed, *(args or (kwargs,)))
    except InputError:  # calibration says what is wrong, if the batch is
        return model
    return changed


def compressed(archive: Archive, model: nn.Module) -> nn.Module:
    """Return a copy of a dense model that holds the tensors of an archive."""
    made = copy.deepcopy(model)
    fill(made, archive, strict=False)
    return made


def labelled(archive: Archive, error: float) -> Archive:
    """Return an archive whose metadata name the measured squared error of the outputs."""
    said = {label.OUTPUT_ERROR: label.output_error_text(error**0.5)}
    return replace(archive, metadata={**archive.metadata, **said})


def freeze_folded(model: nn.Module, dense: nn.Module) -> None:
    """Freeze the biases of a model that folding has set to zero in its dense twin."""
    frozen = {name for name, p in dense.named_parameters() if not p.requires_grad}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def _content(entries: Mapping[str, Entry], name: str) -> Any:
    content = entries[name].content
    return entries[content.target].content if isinstance(content, Alias) else content
