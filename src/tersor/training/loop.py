# SPDX-License-Identifier: Apache-2.0
"""Run the training: steps, each followed by a projection, and a file after each epoch."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tersor.calibration.normalization import normalizations
from tersor.errors import InputError, TrainingError, explained
from tersor.progress import Progress as Show
from tersor.storage import container
from tersor.training import checkpoint, pressure
from tersor.training.batch_source import BatchSource
from tersor.training.batches import Batch
from tersor.training.checkpoint import Progress
from tersor.training.curvature import curvature
from tersor.training.groups import LATENTS, parameter_groups
from tersor.training.objective import Objective
from tersor.training.projection import fit
from tersor.training.rounding import Rounding
from tersor.training.schedule import Schedule
from tersor.training.sharding import Sharded, Whole
from tersor.training.sizes import contents, rounded

if TYPE_CHECKING:
    from accelerate import Accelerator

Evaluate = Callable[[nn.Module], float]
"""Function that takes a model and returns a number, higher for better models."""


@dataclass(frozen=True)
class Plan:
    """Settings of a run.

    Parameters
    ----------
    schedule
        Quantities that change from step to step.
    epochs, accumulate, lr, weight_decay, fixed_statistics
        See `tersor.finetune`.
    checkpoint, interval
        File to continue from, and seconds after which it is written again within an epoch.
    options
        Options of the run, which must be the same in a checkpoint that it continues from.
    """

    schedule: Schedule
    epochs: int
    accumulate: int
    lr: float
    weight_decay: float
    fixed_statistics: bool
    checkpoint: Path | None
    interval: float
    options: Mapping[str, Any]


class Run:
    """Training of a model with factors, in place.

    Parameters
    ----------
    model
        Model with factors, on the device of the accelerator unless ``sharded``.
    source, objective
        Batches and the loss.
    evaluate
        Function that values the files; None if the last one is the best.
    plan
        Settings.
    accelerator
        Accelerator that distributes the work.
    sharded
        Whether each process trains a part of the parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        source: BatchSource,
        objective: Objective,
        evaluate: Evaluate | None,
        plan: Plan,
        accelerator: Accelerator,
        *,
        sharded: bool,
    ) -> None:
        self.source, self.objective, self.evaluate, self.plan = source, objective, evaluate, plan
        self.accelerator = accelerator
        groups = parameter_groups(model, lr=plan.lr, weight_decay=plan.weight_decay)
        self.rates = [group["lr"] for group in groups]
        names = rounded(model)
        coarse = [n for n, (name, _) in enumerate(model.named_parameters()) if name in names]
        self.progress = pressure.begin(model, plan.schedule)
        self.held = Sharded(model, accelerator) if sharded else Whole(model)
        self.bare = self.held.trained
        self.normalizations = list(normalizations(self.bare).values())
        self.momenta = [layer.momentum for layer in self.normalizations]
        self.model, self.optimizer = self.held.prepare(groups, accelerator)
        own = list(self.bare.parameters())
        self.rounding = Rounding([own[n] for n in coarse], plan.schedule.digits)
        self.written = time.monotonic()

    def __call__(self, show: Show) -> Progress:
        """Train to the end, from the checkpoint if there is one, and return the progress.

        Parameters
        ----------
        show
            Function that shows a message and the share of the work that is done.

        Returns
        -------
        Progress
            The last state, with the file and the history.

        Raises
        ------
        TrainingError
            If the loss becomes NaN or infinite.
        InputError
            If the checkpoint does not fit, or ``evaluate`` or the loss raise or return something
            invalid.
        """
        self._resume()
        try:
            while self.progress.epoch < self.plan.epochs:
                self._epoch(show)
                self._finish_epoch()
                self._save()
        finally:
            self._average_statistics(0)
        return self.progress

    def _epoch(self, show: Show) -> None:
        self.model.train()
        if self.plan.fixed_statistics:
            for layer in self.normalizations:
                layer.eval()
        now, batches = self.progress, self.source.batches
        for group in grouped(self.source.epoch(now.epoch, now.batch), self.plan.accumulate):
            now.losses += self._step(group) * len(group)
            now.batch += len(group)
            show(self._message(), now.step / self.plan.schedule.steps)
            if now.batch < batches and self._is_due():
                self._save()

    def _step(self, group: Sequence[Batch]) -> float:
        """Do one step of the optimizer, project the latents, and return the mean loss."""
        now, schedule = self.progress, self.plan.schedule
        moving = schedule.latents_move(now.step)
        for settings, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            still = settings["name"] == LATENTS and not moving
            settings["lr"] = 0.0 if still else rate * schedule.rate(now.step)
        self._average_statistics(schedule.statistics_average(now.step))
        loss = self._backward(group)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {now.step + 1}, epoch {now.epoch + 1}; try a smaller "
                "learning rate, or look at the batches"
            )
        with self.rounding.real():
            self.optimizer.step()
        self.optimizer.zero_grad()
        now.step += 1
        if moving:
            counts = curvature(self.bare, self.optimizer)
            pressure.project_step(self.bare, now, schedule, counts)
            if not schedule.latents_move(now.step):
                pressure.freeze_latents(self.held.gather(), now, schedule, counts)
                self.held.spread()
        return loss

    def _average_statistics(self, number: int) -> None:
        """Average running statistics over ``number`` batches; if it is 0, follow the batches."""
        for layer, momentum in zip(self.normalizations, self.momenta, strict=True):
            layer.momentum = 1 / number if number else momentum

    def _backward(self, group: Sequence[Batch]) -> float:
        """Compute the gradients of a group of batches; return its mean loss over all processes."""
        now, schedule = self.progress, self.plan.schedule
        losses: list[Tensor] = []
        for number, batch in enumerate(group, start=1):
            whole = number == len(group)
            with nullcontext() if whole else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    loss = self.objective(self.model, batch) / len(group)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        for term in pressure.rate_terms(self.bare, now, schedule):
            self.accelerator.backward(term)
        total = self.accelerator.reduce(torch.stack(losses).sum(), "mean")
        return float(total)

    def _finish_epoch(self) -> None:
        """Make a file of a copy of the model, evaluate it, and keep it if it is the best."""
        now, schedule = self.progress, self.plan.schedule
        candidate = copy.deepcopy(self.held.gather()).eval().cpu()  # searches run on the CPU
        counts = curvature(self.bare, self.optimizer)
        found = fit(
            candidate, round(schedule.size(now.step)), now.lagrangian, counts, schedule.digits
        )
        value = self._value(candidate.to(self.accelerator.device))
        now.overhead_bytes = pressure.overhead_bytes(candidate)
        now.epoch, loss = now.epoch + 1, now.losses / self.source.batches
        now.batch, now.losses = 0, 0.0
        now.history.append(
            {"epoch": now.epoch, "loss": loss, "nbytes": found.nbytes, "value": value}
        )
        better = value is None or now.best is None or value > now.best
        if found.nbytes <= schedule.target_size and better:
            now.best, now.file = value, b"".join(container.to_bytes(contents(candidate)))

    def _value(self, model: nn.Module) -> float | None:
        if self.evaluate is None:
            return None
        with torch.no_grad(), explained("evaluate", "it is called with the model"):
            value = float(self.evaluate(model))
        if math.isnan(value):
            raise InputError("evaluate returned NaN; a number is needed, the higher the better")
        return value

    def _message(self) -> str:
        now = self.progress
        last = now.history[-1] if now.history else None
        value = f", last value {last['value']:.4g}" if last and last["value"] is not None else ""
        size = round(self.plan.schedule.size(now.step))
        loss = now.losses / max(now.batch, 1)
        return f"epoch {now.epoch + 1}/{self.plan.epochs}, loss {loss:.4g}{value}, {size} bytes"

    def _is_due(self) -> bool:
        """Return whether it is time for a checkpoint in any process: all take part in it."""
        if self.plan.checkpoint is None:
            return False
        late = time.monotonic() - self.written > self.plan.interval
        votes = torch.tensor(float(late), device=self.accelerator.device)
        return bool(self.accelerator.reduce(votes, "sum"))

    def _save(self) -> None:
        """Write the checkpoint, in the first process."""
        self.written, writes = time.monotonic(), self.accelerator.is_main_process
        if self.plan.checkpoint is None:
            return
        with self.rounding.real():
            states = {"model": self.held.gather().state_dict()}
            states["optimizer"] = self.held.states(self.optimizer, keep=writes)
            if self.accelerator.scaler is not None:
                states["scaler"] = self.accelerator.scaler.state_dict()
            if writes:
                checkpoint.write(self.plan.checkpoint, self.progress, self.plan.options, states)

    def _resume(self) -> None:
        path = self.plan.checkpoint
        if path is None or not path.exists():
            return
        self.progress, states = checkpoint.read(path, self.plan.options)
        with explained(f"the checkpoint {path}", "remove it, or give the model that it is of"):
            self.held.model.load_state_dict(states["model"])
            self.held.spread()
            self.rounding.begin()
            self.held.load_states(self.optimizer, states["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(states["scaler"])


def grouped(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Yield lists of ``size`` batches; the last one may be shorter."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
