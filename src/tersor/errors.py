"""Define the errors that a user can cause.

Each message says what was received, what is needed and what to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class TersorError(Exception):
    """Base of every error that tersor raises on purpose."""


class InputError(TersorError, ValueError):
    """Error: a tensor, model, option or checkpoint cannot be used."""


class BudgetError(InputError):
    """Error: a size cannot be met; the message names the sizes that can."""


class FileFormatError(TersorError, ValueError):
    """Error: a file is damaged, or is not a valid tersor file."""


class TrainingError(TersorError, RuntimeError):
    """Error: training cannot go on; the best model so far is kept."""


class MissingExtraError(TersorError, ImportError):
    """Error: an optional dependency is missing; the message names the extra to install."""


class QualityWarning(UserWarning):
    """Warning: the compressed model may compute other outputs than the dense model did."""


@contextmanager
def explained(what: str, needed: str) -> Iterator[None]:
    """Turn an exception of the user's code into an `InputError` that names this code.

    Parameters
    ----------
    what
        Name of the user's code, the subject of the message.
    needed
        What the code must do instead, the end of the message.

    Raises
    ------
    InputError
        If the code in the ``with`` block raises an exception or exits. Errors of tersor and
        `MemoryError` pass unchanged.
    """
    try:
        yield
    except (TersorError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{what} raised {type(error).__name__}: {error}; {needed}") from error
