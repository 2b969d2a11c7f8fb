# SPDX-License-Identifier: Apache-2.0
"""Training of the baselines: the same data, teacher, schedule and checkpoints as ours."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lib import trained_baselines as baselines
from benchmarks.lib.views import Views
from tersor.calibration.normalization import normalizations
from tersor.errors import TrainingError
from tersor.storage.atomic import replacing
from tersor.training.groups import norm_weights
from tersor.training.rounding import Rounding
from tersor.training.schedule import MOVING, Schedule

INTERVAL = 300
"""Seconds between checkpoints."""

CONTROL = 10, 0.5
"""Steps between two looks at the size, and how much of what is missing pruning makes up."""


class Training:
    """A baseline in training.

    Parameters
    ----------
    model
        Dense model with the method's forms.
    forms
        These, by the names of the weights.
    views
        Training data.
    epochs, lr
        Times that they are gone through; learning rate of a dense weight.
    loss
        Of outputs and targets.
    target
        Bytes that all forms together may take.
    digits
        Binary digits of biases and normalisation parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        forms: dict[str, baselines.Form],
        views: Views,
        epochs: int,
        lr: float,
        loss: Callable[[Tensor, Tensor], Tensor],
        target: int,
        digits: int,
    ) -> None:
        self.model, self.forms, self.views, self.epochs = model, forms, views, epochs
        self.loss, self.target = loss, target
        size = math.ceil(baselines.coded_bytes(model, forms))
        self.schedule = Schedule(epochs * len(views), max(size, target), target)
        self.optimizer = torch.optim.AdamW(_groups(model, forms, lr), weight_decay=0.0)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.rounding = Rounding(baselines.vectors(model), digits)
        self.scalar = any(isinstance(form, baselines.Scalar) for form in forms.values())
        self.step, self.losses, self.spent = 0, [0.0, 0.0], 0.0

    def run(self, checkpoint: Path, say: Callable[[str], None]) -> None:
        """Train to the end, from the checkpoint if there is one."""
        if checkpoint.exists():
            self.load_state_dict(torch.load(checkpoint, weights_only=True))
        written = time.monotonic()
        while self.step < self.schedule.steps:
            epoch, done = divmod(self.step, len(self.views))
            self.views.set_epoch(epoch)
            for number, (images, targets) in enumerate(self.views):
                if number < done:
                    continue
                self._step(images, targets)
                if self.step % len(self.views) == 0 or time.monotonic() - written > INTERVAL:
                    self._save(checkpoint, time.monotonic() - written)
                    written = time.monotonic()
                    say(f"step {self.step}, loss {self.losses[0] / max(1, self.losses[1]):.4f}")
            self.losses = [0.0, 0.0]

    def _step(self, images: Tensor, targets: Tensor) -> None:
        moving = self.schedule.latents_move(self.step)
        self._forms(self.step / (MOVING * self.schedule.steps), moving)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.schedule.rate(self.step)
        loss = self.loss(self._mode()(images), targets)
        if not bool(loss.isfinite()):
            raise TrainingError(f"the loss is {float(loss)} at step {self.step + 1}")
        self.optimizer.zero_grad()
        loss.backward()
        with self.rounding.real():
            self.optimizer.step()
        self.step += 1
        self.losses = [self.losses[0] + float(loss.detach()), self.losses[1] + 1]

    def _mode(self) -> nn.Module:
        """The model for training; normalisation was folded, and keeps its statistics."""
        for layer in normalizations(self.model.train()).values():
            layer.eval()
        return self.model

    def _forms(self, share: float, moving: bool) -> None:
        forms = self.forms.values()
        for form in forms:
            form.at(min(share, 1.0))
        if moving and self.scalar and self.step % CONTROL[0] == 0:
            baselines.widen(forms, self._excess(self.schedule.size(self.step)) ** CONTROL[1])
        if not moving and not all(form.resting for form in forms):
            while self.scalar and self._excess(self.target) > 1 and baselines.widen(forms, 1.01):
                pass
            for name, weight in baselines.originals(self.model, self.forms).items():
                self.forms[name].rest(weight)

    def _excess(self, size: float) -> float:
        """Size of the forms over what they may have."""
        return baselines.coded_bytes(self.model, self.forms) / size

    def state_dict(self) -> dict[str, Any]:
        """All that a run goes on from."""
        forms = {
            n: [f.resting, getattr(f, "dead", 0.0), getattr(f, "temperature", 0.0)]
            for n, f in self.forms.items()
        }
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "numbers": [self.step, self.losses, self.spent],
            "forms": forms,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.model.load_state_dict(state["model"])
        self.rounding.begin()
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.losses, self.spent = state["numbers"]
        for name, (resting, dead, temperature) in state["forms"].items():
            form = self.forms[name]
            form.resting, form.dead, form.temperature = resting, dead, temperature

    def _save(self, checkpoint: Path, seconds: float) -> None:
        self.spent += seconds
        with self.rounding.real(), replacing(checkpoint) as temporary:
            torch.save(self.state_dict(), temporary)


def _groups(model: nn.Module, forms: dict[str, baselines.Form], lr: float) -> list[dict[str, Any]]:
    own = {p: float(p.detach().abs().mean()) for p in norm_weights(model)}
    own |= {p: rate for form in forms.values() for p, rate in form.rates().items()}
    named = [(p, own.get(p, 1.0)) for p in model.parameters() if p.requires_grad]
    rates = sorted({rate for _, rate in named})
    return [{"params": [p for p, r in named if r == rate], "lr": lr * rate} for rate in rates]
