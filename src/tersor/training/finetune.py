# SPDX-License-Identifier: Apache-2.0
"""Train a model with factors within a budget of bytes: `finetune` checks, runs and finishes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from tersor.calibration.folding import is_folded
from tersor.errors import BudgetError, InputError, MissingExtraError
from tersor.nn.checks import check_model
from tersor.nn.fill import fill
from tersor.progress import shown
from tersor.storage.atomic import check_writable, replacing
from tersor.storage.opened import OpenFile
from tersor.training.batch_source import BatchSource
from tersor.training.batches import Batch
from tersor.training.checkpoint import Progress, identity
from tersor.training.groups import factored_weights
from tersor.training.loop import Evaluate, Plan, Run
from tersor.training.objective import Loss, Objective
from tersor.training.projection import check_reachable
from tersor.training.rounding import digits_for
from tersor.training.schedule import Schedule
from tersor.training.sizes import file_size
from tersor.units import parse_size

if TYPE_CHECKING:
    from accelerate import Accelerator

Precision = Literal["no", "fp16", "bf16"]


@dataclass(frozen=True)
class Finetuned:
    """Result of fine-tuning.

    Parameters
    ----------
    nbytes
        Bytes of the file that `tersor.save` writes for the model.
    value
        Value that ``evaluate`` returned for the model; None if there is no ``evaluate``.
    history
        For each epoch ``epoch``, ``loss`` (the mean training loss), and ``nbytes`` and ``value`` of
        the file at its end.

    Examples
    --------
    >>> model = torch.nn.Linear(32, 32)
    >>> report = tersor.compress(model, ratio=4)
    >>> batches = [(torch.randn(16, 32), torch.randint(4, (16,))) for _ in range(2)]
    >>> trained = tersor.finetune(model, batches, epochs=2)
    >>> [epoch["epoch"] for epoch in trained.history], trained.value
    ([1, 2], None)
    """

    nbytes: int
    value: float | None
    history: tuple[Mapping[str, Any], ...]


def finetune(
    model: nn.Module,
    train_loader: Iterable[Any],
    *,
    target_size: str | int | None = None,
    start_size: str | int | None = None,
    loss: Loss | None = None,
    teacher: nn.Module | None = None,
    evaluate: Evaluate | None = None,
    epochs: int = 10,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    fixed_statistics: bool | None = None,
    accumulate: int = 1,
    mixed_precision: Precision = "no",
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_interval: float = 300.0,
    log: str | os.PathLike[str] | None = None,
) -> Finetuned:
    """Train a model with factors, in place, so that its file stays within a budget.

    The optimizer is AdamW with a warm-up and a cosine schedule. The latents are trained as real
    numbers. After each step they are projected onto the trellis, and gradients pass straight
    through the projection. λ follows the budget; it acts in the projection and
    in the loss. Biases, normalisation parameters and small weights have 3 binary digits more than
    the budget has bits per weight (at most 8), and are trained in the same way. In the last 15 % of
    the steps the latents are frozen and all other parameters adapt to them. After each epoch, a
    copy of the model is fitted into the present budget as its file would be, and evaluated. At the
    end ``model`` becomes the best of those copies that are within the final budget.

    Several processes (``torchrun``, ``accelerate launch``) share each batch, so that the result is
    that of one process within rounding. Batch normalisation sees only the part of its process. Each
    process must call this function with the same model, and has the same result at the end.

    By default each process trains a copy of the model (DDP). If accelerate is told to use FSDP2
    (``accelerate launch --use_fsdp --fsdp_version 2``, or ``ACCELERATE_USE_FSDP=true`` and
    ``FSDP_VERSION=2`` in the environment), each process trains a part of one copy: parameters,
    gradients and the state of AdamW are divided, 16 bytes for each latent element in all. Each
    process holds the whole integers that the model computes with (2 bytes each), the buffers, and
    the teacher. ``model`` itself stays whole, and where it is (leave it on the CPU). The files are
    made from it, and for an evaluation a copy of it goes to the device. The plugin's
    ``auto_wrap_policy`` says which layers are gathered together; without a policy all are. Latents
    are gathered one by one to be projected. Backward passes need the dense weights of all layers,
    or with activation checkpointing those of one layer.

    Parameters
    ----------
    model
        Model that `tersor.compress` or `tersor.load` has given factors. Frozen parameters stay as
        they are. Modules in evaluation mode are trained too, in training mode.
    train_loader
        A DataLoader, or another iterable with a length that can be iterated over once for each
        epoch. Batches are ``(inputs, ..., targets)``, or mappings, dataclasses or named tuples with
        ``labels``. An encoder-decoder model that gets no inputs of the decoder gets the labels,
        from which it makes them. With a teacher and without ``loss``, targets may be left out.
    target_size
        Largest size of the file in bytes: a number, or a text such as ``"54kB"`` (1 kB is 1000
        bytes). By default the size that the file would have now.
    start_size
        Budget at the beginning. The budget shrinks to ``target_size`` in the first half of the run,
        and layers exchange bytes meanwhile. By default the larger one of the target and the present
        size.
    loss
        Function that takes outputs and targets and returns a tensor of one number. By default the
        cross-entropy, or the loss that an encoder-decoder model returns itself; with a teacher
        nothing.
    teacher
        Model whose outputs are learnt too, usually the dense model, by the Kullback-Leibler
        divergence of the softmaxes at a temperature of 2.
    evaluate
        Function that takes a model and returns a number, higher for better models. It is called
        after each epoch. Without it the last epoch counts as the best.
    epochs
        Number of passes over the loader.
    lr, weight_decay
        Learning rate and weight decay of AdamW that suit the dense model; see
        `tersor.parameter_groups`.
    fixed_statistics
        Whether batch normalisation keeps its running statistics, and uses them in training too. If
        not, it uses the statistics of the batches in training, and at the end their mean over the
        batches of the last 5 % of the steps. By default they are fixed only if all means are 0 and
        all variances 1, as after `tersor.fold_normalization`: such a model cannot be trained
        otherwise.
    accumulate
        Number of batches for each step of the optimizer.
    mixed_precision
        "bf16" or "fp16": forward and backward passes in 16 bits, by autocast. By default "no".
    seed
        Seed of shuffling and of all random numbers in the loader and the model.
    checkpoint
        File from which a stopped run continues, with the same result bit for bit. It is written
        after each epoch and every ``checkpoint_interval`` seconds, and is not removed at the end.
    checkpoint_interval
        Seconds between two checkpoints within an epoch.
    log
        JSON file with the options and the history, written after the last epoch.

    Returns
    -------
    Finetuned
        Size and value of the model, and the history.

    Raises
    ------
    TrainingError
        If the loss becomes NaN or infinite; the message says at which step. The model is then the
        best one so far.
    BudgetError
        If the budget cannot be reached.
    InputError
        If the model holds no factors or nothing to train, the loader is empty or has no length,
        teacher or loss do not fit, the checkpoint is of a run with other options or another
        teacher, or the model cannot be sharded as requested (FSDP1, parameters of several types,
        cpu_offload).
    MissingExtraError
        If `accelerate` is not installed.

    Examples
    --------
    >>> from copy import deepcopy
    >>> layers = torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)
    >>> dense = torch.nn.Sequential(*layers)
    >>> model = deepcopy(dense)
    >>> report = tersor.compress(model, ratio=4)
    >>> batches = [(torch.randn(16, 32), torch.randint(4, (16,))) for _ in range(4)]
    >>> trained = tersor.finetune(model, batches, teacher=dense, epochs=2, target_size=1200)
    >>> tersor.save(model, "model.tersor").nbytes == trained.nbytes <= 1200
    True
    """
    _check(model, teacher)
    fixed = is_folded(model) if fixed_statistics is None else fixed_statistics
    options = Options(epochs, lr, weight_decay, fixed, accumulate, mixed_precision, seed)
    accelerator = _accelerator(mixed_precision, seed)
    sharded = _shards(accelerator)
    objective = Objective(loss, teacher)
    read = partial(Batch.of, model=model, labelled=objective.needs_targets)
    source = BatchSource(train_loader, seed, accelerator, read)
    schedule = _schedule(model, source.batches, options, start_size, target_size)
    taught = None if teacher is None else identity(teacher)
    facts = asdict(options) | asdict(schedule) | {"teacher": taught}
    plan = Plan(
        schedule,
        epochs,
        accumulate,
        lr,
        weight_decay,
        fixed,
        _path(checkpoint),
        checkpoint_interval,
        facts,
    )
    for path in (plan.checkpoint, _path(log)):
        if path is not None:
            check_writable(path)
    with ExitStack() as stack:
        stack.enter_context(_borrowed(model, None if sharded else accelerator.device))
        if teacher is not None:
            stack.enter_context(_borrowed(teacher, accelerator.device))
        run = Run(model, source, objective, evaluate, plan, accelerator, sharded=sharded)
        try:
            with shown("fine-tuning") as show:
                run(show)
        finally:
            result = _finish(model, run.progress)
    if log is not None and accelerator.is_main_process:
        _write_log(Path(log), facts, result)
    return result


@contextmanager
def _borrowed(module: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Move a module to a device, in evaluation mode; restore its device and modes at the end."""
    home = next((p.device for p in module.parameters()), device)
    modes = {part: part.training for part in module.modules()}
    try:
        module.to(device).eval()
        yield
    finally:
        module.to(home)
        for part, training in modes.items():
            part.training = training


@dataclass(frozen=True)
class Options:
    """Numbers that the result of a run depends on, see `finetune`."""

    epochs: int
    lr: float
    weight_decay: float
    fixed_statistics: bool
    accumulate: int
    mixed_precision: Precision
    seed: int

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("accumulate", self.accumulate)):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number, 1 or more, got {value!r}")
        if self.mixed_precision not in get_args(Precision):
            raise InputError(
                f"unknown mixed precision {self.mixed_precision!r}, choose one of "
                f"{get_args(Precision)}"
            )


def _check(model: nn.Module, teacher: nn.Module | None) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"an nn.Module is needed, got a {type(model).__name__}")
    check_model(model)
    if not factored_weights(model):
        raise InputError("the model holds no quantized factors; call tersor.compress first")
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise InputError(f"the teacher must be an nn.Module, got a {type(teacher).__name__}")


def _accelerator(mixed_precision: Precision, seed: int) -> Accelerator:
    try:
        from accelerate import Accelerator, DataLoaderConfiguration
    except ImportError:
        raise MissingExtraError(
            "fine-tuning needs accelerate: pip install 'tersor[finetune]'"
        ) from None
    loading = DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True, data_seed=seed)
    try:
        accelerator = Accelerator(
            mixed_precision=mixed_precision,
            dataloader_config=loading,
            # Without this, accelerate does not connect processes that run on CPUs.
            cpu="LOCAL_RANK" in os.environ and not torch.accelerator.is_available(),
        )
    except ValueError as error:  # the process has another precision already, or the device lacks it
        raise InputError(f"mixed precision {mixed_precision!r} cannot be used: {error}") from None
    return accelerator


def _shards(accelerator: Accelerator) -> bool:
    """Return whether the processes share the parameters of the model, not only the batches."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    state, wanted = accelerator.state, os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if getattr(state, "fsdp_plugin", None) is None and wanted:  # set on GPUs only
        from accelerate import FullyShardedDataParallelPlugin

        state.fsdp_plugin = FullyShardedDataParallelPlugin()
    plugin = getattr(state, "fsdp_plugin", None)
    if plugin is not None and getattr(plugin, "fsdp_version", 1) != 2:
        raise InputError(
            "factors can be sharded by FSDP2 only; choose it (accelerate launch --fsdp_version 2, "
            "FSDP_VERSION=2, or fsdp_version=2 of the plugin), or copies of the model (DDP)"
        )
    return plugin is not None


def _schedule(
    model: nn.Module,
    batches: int,
    options: Options,
    start_size: str | int | None,
    target_size: str | int | None,
) -> Schedule:
    size = file_size(model)
    target = size if target_size is None else parse_size(target_size)
    start = max(size, target) if start_size is None else parse_size(start_size)
    if start < target:
        raise BudgetError(f"the start size, {start} bytes, is below the target size, {target}")
    digits = digits_for(model, target)
    check_reachable(model, target, digits)
    steps = options.epochs * math.ceil(batches / options.accumulate)
    return Schedule(steps, start, target, digits)


def _finish(model: nn.Module, progress: Progress) -> Finetuned:
    """Load the best file into the model, if there is one, and return the result."""
    if progress.file:
        fill(model, OpenFile(progress.file))
    history = tuple(progress.history)
    return Finetuned(file_size(model), progress.best, history)


def _path(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)


def _write_log(path: Path, options: Mapping[str, Any], result: Finetuned) -> None:
    with replacing(path) as temporary:
        content = {"options": dict(options)} | asdict(result)
        temporary.write_text(json.dumps(content, indent=1) + "\n")
