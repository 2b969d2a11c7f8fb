# SPDX-License-Identifier: Apache-2.0
"""Run several calls of models side by side, all of which stop before the same modules."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tersor.nn.observe import Look, at_input, observing

Call = Callable[[nn.Module], object]
"""Function that calls a model with one batch."""


@dataclass(frozen=True)
class Stop:
    """A stop of all calls before the module of this name.

    Parameters
    ----------
    name
        Name of the module, as in ``named_modules``.
    inputs
        The module's next input: for each model, the first argument in each call.
    """

    name: str
    inputs: tuple[tuple[Tensor, ...], ...]


class DivergedError(Exception):
    """The models do not reach the same modules in the same order."""


class _Abandoned(BaseException):
    """Ends a call whose result is not needed any more."""


class _Run:
    """A call in its own thread, which runs only while the caller waits for it.

    So nothing runs at the same time, and models may be changed at any stop.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self._work, self._go, self._stopped = work, threading.Semaphore(0), threading.Semaphore(0)
        self._at: tuple[str, Tensor] | None = None
        self._error: BaseException | None = None
        self._abandoned = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def advance(self) -> tuple[str, Tensor] | None:
        """Run to the next module and return its name and input, or None at the end."""
        self._at = None
        self._go.release()
        self._stopped.acquire()
        if self._error:
            raise self._error
        return self._at

    def stop(self, name: str, x: Tensor) -> None:
        """Stop the call's own thread until it may continue."""
        self._at = name, x
        self._stopped.release()
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned

    def abandon(self) -> None:
        """End the thread."""
        self._abandoned = True
        self._go.release()
        self.thread.join()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._abandoned:
                with torch.no_grad():
                    self._work()
        except BaseException as error:
            self._error = error
        self._at = None
        self._stopped.release()


def lockstep(
    models: Sequence[nn.Module], names: Sequence[str], calls: Sequence[Call]
) -> Iterator[Stop]:
    """Call models side by side, in evaluation mode, and stop all calls before some modules.

    Memory is needed for the tensors that are alive at one point of all calls, not for the inputs of
    every module. A module may be changed while all calls stand before it.

    Parameters
    ----------
    models
        Models of one architecture.
    names
        Names of the modules, as in ``named_modules``.
    calls
        Each is made with every model.

    Yields
    ------
    Stop
        The next module and its inputs.

    Raises
    ------
    DivergedError
        If one call reaches another module than the others.
    """
    here = threading.local()
    with _running(models, names, calls, here) as runs:
        while True:
            places = [[run.advance() for run in of_model] for of_model in runs]
            found = {place and place[0] for of_model in places for place in of_model}
            if len(found) > 1:
                raise DivergedError
            if (name := found.pop()) is None:
                return
            yield Stop(name, tuple(tuple(p[1] for p in row if p) for row in places))


@contextmanager
def _running(
    models: Sequence[nn.Module],
    names: Sequence[str],
    calls: Sequence[Call],
    here: threading.local,
) -> Iterator[list[list[_Run]]]:
    def work(call: Call, model: nn.Module, own: list[_Run]) -> None:
        here.run = own[0]
        call(model)

    def started(call: Call, model: nn.Module) -> _Run:
        own: list[_Run] = []
        own.append(_Run(partial(work, call, model, own)))
        return own[0]

    with ExitStack() as stack:
        for model in models:
            stack.enter_context(observing(model, _looks(model, names, here)))
        runs = [[started(call, model) for call in calls] for model in models]
        try:
            yield runs
        finally:
            for of_model in runs:
                for run in of_model:
                    run.abandon()


def _looks(
    model: nn.Module, names: Sequence[str], here: threading.local
) -> Mapping[nn.Module, Look]:
    def look(name: str) -> Look:
        return at_input(lambda x: here.run.stop(name, x))

    return {model.get_submodule(name): look(name) for name in names}
