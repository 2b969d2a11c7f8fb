"""Calls of models that stop before some of their modules, so that several go on side by side."""

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
"""Calls a model with one batch."""


@dataclass(frozen=True)
class Stop:
    """Where all calls stand: before the module of this name.

    Parameters
    ----------
    name
        As in ``named_modules``.
    inputs
        What the module is about to get: for each model the first input of each call.
    """

    name: str
    inputs: tuple[tuple[Tensor, ...], ...]


class DivergedError(Exception):
    """The models do not come to the same modules in the same order."""


class _Abandoned(BaseException):
    """Ends a call that nobody waits for any more."""


class _Run:
    """A call in a thread of its own, which only goes on while it is waited for.

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
        """The next module's name and input; None at the end."""
        self._at = None
        self._go.release()
        self._stopped.acquire()
        if self._error:
            raise self._error
        return self._at

    def stop(self, name: str, x: Tensor) -> None:
        """Called in the thread: wait."""
        self._at = name, x
        self._stopped.release()
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned

    def abandon(self) -> None:
        """Let the thread end."""
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
    """Call models side by side, in evaluation mode; all of them stop before some modules.

    Memory is taken for what is alive at one point of all the calls, not for what reaches every
    module. A module may be changed while all calls stand before it.

    Parameters
    ----------
    models
        Models of one architecture.
    names
        Of the modules, as in ``named_modules``.
    calls
        Each is made of every model.

    Raises
    ------
    DivergedError
        If one call comes to another module than the others.
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
