# SPDX-License-Identifier: Apache-2.0
"""Compute the loss that training minimises: the user's loss, and the distance from a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tersor.calibration.samples import logits
from tersor.errors import InputError, explained
from tersor.training.batches import NEEDED, Batch

Loss = Callable[[Any, Any], Tensor]
"""Function that takes the model's output and the targets, and returns a tensor of one number."""

TEMPERATURE = 2.0
"""Temperature of the softmax of both models if one learns from the other (Hinton et al., 2015)."""


@dataclass(frozen=True)
class Objective:
    """Loss of a batch.

    Parameters
    ----------
    loss
        Loss of outputs and targets. If it is None and there is no teacher, the loss is the one that
        the model returns when it is called with labels, or else the cross-entropy.
    teacher
        Model in evaluation mode whose outputs the model learns. If ``loss`` is None, only the
        distance from these outputs counts.
    """

    loss: Loss | None
    teacher: nn.Module | None

    @property
    def needs_targets(self) -> bool:
        """Return whether batches need targets: not if the model learns only from a teacher."""
        return self.loss is not None or self.teacher is None

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a model on a batch: a float32 scalar with gradients."""
        output = _answer("model", model, batch)
        terms = []
        if self.teacher is not None:
            with torch.no_grad():
                wanted = logits(_answer("teacher", self.teacher, batch))
            terms.append(distance(logits(output), wanted))
        if self.loss is not None:
            terms.append(_checked(self.loss, output, batch.targets))
        elif self.teacher is None and "labels" in batch.kwargs and hasattr(output, "loss"):
            terms.append(_checked(lambda output, _: output.loss, output, None))
        elif self.teacher is None:
            terms.append(_checked(cross_entropy, logits(output), batch.targets))
        return torch.stack(terms).sum()


def _answer(what: str, model: nn.Module, batch: Batch) -> Any:
    with explained(f"the {what}, called with a batch of the loader,", NEEDED):
        return model(*batch.args, **batch.kwargs)


def cross_entropy(output: Tensor, targets: Any) -> Tensor:
    """Return the cross-entropy of class scores and class numbers.

    Parameters
    ----------
    output
        Scores of the classes, which are the second axis.
    targets
        Class numbers.

    Raises
    ------
    InputError
        If the targets are not a tensor.
    """
    if not isinstance(targets, Tensor):
        raise InputError(
            f"the targets are a {type(targets).__name__}; class numbers are needed as a tensor, or "
            "a loss of your own"
        )
    return F.cross_entropy(output.float(), targets)


def distance(output: Tensor, wanted: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of two softmaxes over the last axis, at a temperature.

    The divergence is multiplied by the squared temperature, which keeps the gradients as large as
    they are without a temperature.

    Parameters
    ----------
    output, wanted
        Scores of the model and of the teacher, of the same shape.

    Raises
    ------
    InputError
        If the shapes differ.
    """
    if output.shape != wanted.shape:
        raise InputError(
            f"the teacher's output has the shape {tuple(wanted.shape)}, the model's "
            f"{tuple(output.shape)}; give a teacher of the same task"
        )
    soft, reference = (
        (scores.float() / TEMPERATURE).log_softmax(-1).flatten(0, -2) for scores in (output, wanted)
    )
    divergence = F.kl_div(soft, reference, log_target=True, reduction="batchmean")
    return TEMPERATURE**2 * divergence


def _checked(loss: Loss, output: Any, targets: Any) -> Tensor:
    with explained("the loss", "it is called with the model's output and the targets of a batch"):
        value = loss(output, targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InputError(
            f"the loss must be a tensor of one number, got {got}; take the mean over the batch"
        )
    return value.float().reshape(())
