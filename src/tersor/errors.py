"""Errors that a user can cause, each saying what was received, what is needed and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class TersorError(Exception):
    """Base of every error that tersor raises on purpose."""


class InputError(TersorError, ValueError):
    """A tensor, model, option or checkpoint that cannot be used."""


class BudgetError(InputError):
    """A size that cannot be met; the message names the sizes that can."""


class FileFormatError(TersorError, ValueError):
    """A file that is not a valid tersor file, or is damaged."""


class TrainingError(TersorError, RuntimeError):
    """Training that cannot go on; the best model so far is kept."""


class MissingExtraError(TersorError, ImportError):
    """An optional dependency that is not installed; the message names the extra to install."""


class QualityWarning(UserWarning):
    """A compressed model that may compute something else than the dense one did."""


@contextmanager
def explained(what: str, needed: str) -> Iterator[None]:
    """Turn whatever code of the user raises into an `InputError` that says whose error it is."""
    try:
        yield
    except (TersorError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{what} raised {type(error).__name__}: {error}; {needed}") from error
