# SPDX-License-Identifier: Apache-2.0
"""Find what may have gone wrong in a compressed model, and write warnings that say what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tersor.storage.summary import TensorSummary

WEAK = 12.0
"""Signal-to-noise ratio in dB below which a weight that matters is worth a warning.

Without data and without matched normalisation, ResNet-20 loses 3.5 points of accuracy when its
weakest weight has 9.2 dB and 0.4 points at 16 dB; ResNet-8 loses 14 points at 11 dB. The decisions
of the voice detector Silero agree in 77 % of cases at 10 dB and in 98 % at 18.6 dB."""

MUCH = 10 ** (-WEAK / 20)
"""Relative error of a model's outputs that is worth a warning: a quarter."""

UNMATCHED = 0.1
"""Predicted relative error that is worth a warning if normalisation was not matched.

MobileNetV1 compressed without data loses 19 points of accuracy at 8 times smaller and nearly all at
10 times. With calibration, which matches normalisation too, it loses 0.3 points at 10 times."""

_ADDED = re.compile(r"pos(ition)?|token_type|segment|relative|bias", re.IGNORECASE)
"""Parts of names of tables that are added to activations. Losing such a table does not cut the
signal."""

_SHOWN = 3
"""Most names in a sentence."""

_REMEDY = "Ask for a lower ratio, keep such weights (--keep) or give them more bits (--bits)"


def signal_matters(tensor: TensorSummary) -> bool:
    """Return whether the model's signal passes through a factored tensor, judged by its name."""
    return not _ADDED.search(tensor.name)


def predicted_error(tensors: Sequence[TensorSummary]) -> float | None:
    """Return the relative error to expect of a model's outputs, predicted without data.

    It is the relative error of the weakest weight, because a model's output is no better than its
    weakest weight. For the three networks of `WEAK`, compressed 8 to 32 times, the measured error
    was 0.6 to 1.8 times the prediction. For MobileNetV1, whose normalisation was not matched, it
    was 5 times the prediction: see `UNMATCHED`.

    Parameters
    ----------
    tensors
        Summaries of all tensors.

    Returns
    -------
    float or None
        The relative error, or None if there are no factors or a signal-to-noise ratio is unknown.
    """
    ratios = [t.snr for t in tensors if t.tile is not None and signal_matters(t)]
    known = [snr for snr in ratios if snr is not None]
    return 10 ** (-min(known) / 20) if known and len(known) == len(ratios) else None


def doubts(
    tensors: Sequence[TensorSummary],
    *,
    predicted: float | None,
    measured: float | None = None,
    calibrated: bool = False,
) -> tuple[str, ...]:
    """Return the warnings about a compressed model, each a sentence or two.

    Parameters
    ----------
    tensors
        Summaries of all tensors of the file.
    predicted, measured
        Relative error of the model's outputs, or None where unknown. A measured error is used in
        place of the prediction.
    calibrated
        Whether the prediction comes from calibration data, which is more reliable than the
        signal-to-noise ratios of weights.
    """
    lost = [t for t in tensors if t.tile is not None and t.rank == 0 and t.snr == 0]
    informed = calibrated or measured is not None
    remedy = _REMEDY if informed else f"{_REMEDY}; or compress with data (--data)"
    found = []
    if lost:
        why = "" if informed else ": without calibration, what is small beside others counts little"
        found.append(f"{_count(lost)} got no bits and became zero: {_names(lost)}{why}. {remedy}")
    error = predicted if measured is None else measured
    if error is not None and error >= MUCH:
        weak = "" if informed else _weak([t for t in tensors if t not in lost])
        figure = differ(measured=measured, predicted=predicted, calibrated=calibrated)
        found.append(f"{weak}{figure}. {remedy}")
    statistics = any(t.name.endswith("running_var") for t in tensors)
    if not informed and statistics and error is not None and error >= UNMATCHED:
        found.append(
            "normalisation still has the dense model's statistics, which can make outputs differ "
            "far more than predicted. Compress with data (--data), or call "
            "tersor.match_normalization"
        )
    return tuple(found)


def differ(
    *, measured: float | None = None, predicted: float | None = None, calibrated: bool = False
) -> str:
    """Return in words how much outputs differ from the dense model's; empty if unknown."""
    if measured is not None:
        return f"outputs differ by {_percent(measured)} on batches held out from calibration"
    if predicted is None:
        return ""
    origin = "from calibration" if calibrated else "without data"
    return f"outputs are predicted, {origin}, to differ by about {_percent(predicted)}"


def _weak(tensors: Sequence[TensorSummary]) -> str:
    weak = [t for t in tensors if t.snr is not None and t.snr < WEAK and signal_matters(t)]
    if not weak:
        return ""
    weak.sort(key=lambda t: t.snr or 0.0)
    below = f"{'is' if len(weak) == 1 else 'are'} below {WEAK:g} dB of signal to noise"
    return f"{_count(weak)} {below}: {_names(weak, ratios=True)}; "


def _count(tensors: Sequence[TensorSummary]) -> str:
    return f"{len(tensors)} weight{'s' if len(tensors) > 1 else ''}"


def _names(tensors: Sequence[TensorSummary], *, ratios: bool = False) -> str:
    return listed([repr(t.name) + (f" ({t.snr:.1f})" if ratios else "") for t in tensors])


def listed(texts: Sequence[str]) -> str:
    """Return the first few texts, and how many more there are."""
    more = len(texts) - _SHOWN
    return ", ".join(texts[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _percent(share: float) -> str:
    """Return a relative error in percent with two digits; more digits would not be reliable."""
    percent = 100 * share
    if percent > 100:
        return "more than 100 %"
    return f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"
