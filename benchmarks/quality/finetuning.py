# SPDX-License-Identifier: Apache-2.0
"""How accurate are CIFAR-10 networks at 1/20 to 1/60 of their size after fine-tuning?

The dense network is compressed, trained with its own answers as the target (or, with ``--teacher``,
those of others, their mean) on the whole training set, augmented as when the teacher was trained
itself (`views`), written to a file, and evaluated from that on the whole test set in a fresh
process. The last state counts; nothing is chosen by the test set. Baselines (`trained_baselines`)
have the same model, data, order, steps and schedule. A run that was stopped goes on where it was
(``.cache/finetuning``); what ``results/finetuning.json`` has is not run again. ``--overhead``
compares a step of the factored model with one of the dense model instead.

    python -m benchmarks.quality.finetuning --network resnet20 --method tersor --ratio 20
        --epochs 15
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tersor
from benchmarks.lib import (
    baseline_training,
    cifar10,
    indices,
    networks,
    on_gpu,
    parts,
    record,
    trained_baselines,
)
from benchmarks.lib.fresh import output_of
from benchmarks.lib.places import CACHE
from benchmarks.lib.views import CLASSES, NETWORKS, Network, Teacher, Views
from tersor.storage.atomic import replacing
from tersor.training import pressure
from tersor.training.curvature import curvature
from tersor.training.objective import distance
from tersor.training.schedule import Schedule
from tersor.training.sizes import file_size

NAME = "finetuning"
METHODS = ("tersor", *trained_baselines.METHODS)
BATCH = 128

LR = {"tersor": 2e-3, "vq": 1e-3, "dkm": 1e-3, "lsq2": 1e-3, "lsq1": 1e-3, "svd": 1e-3}
"""Learning rates; others have not been tried at length."""


@dataclass(frozen=True)
class Job:
    """One run."""

    network: Network
    method: str
    ratio: float
    epochs: int
    seed: int
    lr: float
    batch: int
    teacher: Teacher
    before: int = 0

    @property
    def target(self) -> int:
        """Bytes of the file."""
        return int(self.network.path.stat().st_size / self.ratio)

    @property
    def key(self) -> dict[str, Any]:
        """What tells its row from others."""
        return {
            "network": self.network.name,
            "method": self.method,
            "asked": self.ratio,
            "epochs": self.epochs,
            "seed": self.seed,
            "lr": self.lr,
            "batch": self.batch,
            "teacher": self.teacher.name,
            "before": self.before,
        }

    def file(self, name: str) -> Path:
        """A file of the run's own, which stays."""
        folder = "-".join(
            f"{value:g}" if isinstance(value, float) else str(value) for value in self.key.values()
        )
        path = CACHE / NAME / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def distilled(output: Tensor, targets: Tensor) -> Tensor:
    """Distance to the teacher's answers; the classes are not looked at."""
    return distance(output, targets[:, :CLASSES])


def ours(job: Job, views: Views, start: Path | None) -> None:
    """Compress without training, once, or take what was trained before; then train."""
    first = start or job.file("start.tersor")
    if start is None and not first.exists():
        tersor.save(compressed(job, views.calibration()), first)
    model = tersor.load(first, job.network.dense())
    if views.pixels.is_cuda:
        on_gpu.move(model, views)
        os.environ["ACCELERATE_USE_CPU"] = "true"  # factors stay where their search runs
    tersor.finetune(
        model,
        views,
        target_size=job.target,
        loss=distilled,
        epochs=job.epochs,
        lr=job.lr,
        fixed_statistics=True,
        seed=job.seed,
        checkpoint=job.file("checkpoint"),
        log=job.file("log.json"),
    )
    tersor.save(model, job.file("model.tersor"))


def compressed(job: Job, images: Tensor, trials: int = 2) -> nn.Module:
    """The network within its budget, without training, its normalisation folded."""
    dense, asked = job.network.dense(), job.target
    batches = images.split(256)
    calibration = tersor.calibrate(dense, batches)
    for _ in range(trials):
        model = job.network.dense()
        tersor.compress(model, target_size=asked, calibration=calibration)
        tersor.reconstruct(model, dense, batches)  # gives biases and statistics values again
        tersor.fold_normalization(model, images[:1])
        asked += job.target - file_size(model)
    return model


def baseline(job: Job, views: Views) -> None:
    """Train a baseline."""
    model, dense, path = job.network.dense(), job.network.dense(), job.file("model.tersor")
    digits = trained_baselines.digits_for(dense, job.target)
    others = trained_baselines.others_bytes(dense, digits)
    forms = baseline_forms(job, trained_baselines.RESERVE * job.target - others)
    trained_baselines.attach(model, forms)
    if views.pixels.is_cuda:
        on_gpu.move(model, views)
    training = baseline_training.Training(
        model, forms, views, job.epochs, job.lr, distilled, job.target - others, digits
    )
    training.run(job.file("checkpoint"), lambda text: print(text, flush=True))
    trained_baselines.write(dense, model, forms, digits, path)


def baseline_forms(job: Job, budget: float) -> dict[str, trained_baselines.Form]:
    """The forms that training starts from, made once: clusterings take minutes."""
    path = job.file("forms")
    if not path.exists():
        forms = trained_baselines.make(job.network.dense(), job.method, budget)
        with replacing(path) as temporary:
            torch.save(forms, temporary)
    return torch.load(path, weights_only=False)


def run(job: Job, count: int, start: Path | None = None) -> None:
    """Train, evaluate and record, unless that was done; ours from a file, if there is one."""
    rows = record.load(NAME)
    if any(job.key.items() <= row.items() for row in rows):
        print(f"done already: {job.key}")
        return
    began = time.monotonic()
    views = Views(job.network, job.batch, job.seed, count, job.teacher)
    if job.method == "tersor":
        ours(job, views, start)
    else:
        baseline(job, views)
    path = job.file("model.tersor")
    size, top1 = path.stat().st_size, evaluate_file(job, path)
    row = job.key | {
        "bytes": size,
        "ratio": job.network.path.stat().st_size / size,
        "top1": top1,
        "minutes": (time.monotonic() - began) / 60,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if views.pixels.is_cuda else "CPU",
    }
    print(json.dumps(row), flush=True)
    if count == len(views.pixels):
        record.save(NAME, [*record.load(NAME), row], measures=parts.TRAINING)


def evaluate_file(job: Job, path: Path) -> float:
    """Accuracy on the test set of the model in a file, in a fresh process."""
    options = ["--network", job.network.name, "--method", job.method, "--evaluate", path]
    return float(output_of(__spec__.name, *options))


def evaluate(network: Network, method: str, path: Path) -> float:
    """Accuracy on the test set of the model in a file."""
    if method in ("vq", "dkm"):
        model = indices.read(path, network.dense())
    else:
        model = tersor.load(path, network.dense())
    test = networks.raw_images if network.build is networks.ResNet8 else cifar10.images
    return cifar10.accuracy(model, *test("test"))


def overhead(network: Network, threads: int, rounds: int = 15) -> dict[str, Any]:
    """Times of a training step, dense and factored, in turn: same batch, same loss, AdamW."""
    images, targets = next(iter(Views(network, BATCH, 0, 10 * BATCH)))
    dense, model = network.dense().train(), network.dense()
    tersor.compress(model, ratio=20)
    steps = {
        "dense": _dense_step(dense, images, targets),
        "factored": _factored_step(model.train(), images, targets),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [f / d for d, f in zip(times["dense"], times["factored"], strict=True)]
    return {
        "network": network.name,
        "threads": threads,
        "batch": BATCH,
        "dense_ms": 1000 * medians["dense"],
        "factored_ms": 1000 * medians["factored"],
        "overhead": statistics.median(ratios),
    }


def _dense_step(model: nn.Module, images: Tensor, targets: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)

    def step() -> None:
        distilled(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _factored_step(model: nn.Module, images: Tensor, targets: Tensor) -> Callable[[], None]:
    """What `finetune` does in a step."""
    optimizer = torch.optim.AdamW(tersor.parameter_groups(model, lr=1e-5))
    size = file_size(model)
    schedule = Schedule(1000, size, size)
    now = pressure.begin(model, schedule)
    now.lagrangian = pressure.LAGRANGIAN

    def step() -> None:
        distilled(model(images), targets).backward()
        for term in pressure.rate_terms(model, now, schedule):
            term.backward()
        optimizer.step()
        optimizer.zero_grad()
        now.step += 1
        pressure.project_step(model, now, schedule, curvature(model, optimizer))

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--method", choices=METHODS, default="tersor")
    parser.add_argument("--ratio", type=float, default=20)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--teacher", choices=NETWORKS, nargs="+", help="by default the same network, dense"
    )
    parser.add_argument(
        "--start", type=Path, help="file of a run of ours that this one goes on from"
    )
    parser.add_argument("--before", type=int, default=0, help="epochs of that run")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, help="learning rate; by default that of the method")
    parser.add_argument("--images", type=int, default=50_000, help="fewer: a trial, not recorded")
    parser.add_argument("--overhead", action="store_true", help="time steps instead")
    parser.add_argument("--evaluate", type=Path, help="print the accuracy of one file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    network = NETWORKS[options.network]
    if options.evaluate:
        print(evaluate(network, options.method, options.evaluate))
    elif options.overhead:
        row = overhead(network, options.threads)
        case = itemgetter("network", "threads")
        print(row)
        record.merge("finetuning_step", [row], case, measures=parts.TRAINING)
    elif bool(options.start) != bool(options.before):
        parser.error("--start and --before belong together: a file, and how many epochs it had")
    elif options.start and (options.method != "tersor" or not options.start.exists()):
        parser.error("--start needs --method tersor and a file that exists")
    else:
        lr = options.lr or LR[options.method]
        numbers = options.epochs, options.seed, lr, options.batch
        teacher = Teacher(tuple(NETWORKS[n] for n in options.teacher or [options.network]))
        job = Job(network, options.method, options.ratio, *numbers, teacher, options.before)
        run(job, options.images, options.start)


if __name__ == "__main__":
    main()
