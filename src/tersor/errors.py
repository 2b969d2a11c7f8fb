# SPDX-License-Identifier: Apache-2.0
"""Define the errors that a user can cause.

Each message says what was received, what is needed and what to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class TersorError(Exception):
    """Base of every error that tersor raises on purpose.

    Examples
    --------
    >>> try:
    ...     tersor.inspect("missing.tersor")
    ... except tersor.TersorError as error:
    ...     print(error)
    missing.tersor is not there; give the path of a .tersor file
    """


class InputError(TersorError, ValueError):
    """Error: a tensor, model, option or checkpoint cannot be used.

    Examples
    --------
    >>> tersor.factorize(torch.zeros(8), bits_per_weight=1)
    Traceback (most recent call last):
    tersor.errors.InputError: a weight of ... two axes or more ... is needed, got torch.float32 (8,)
    """


class BudgetError(InputError):
    """Error: a size cannot be met; the message names the sizes that can.

    Examples
    --------
    >>> tersor.compress(torch.nn.Linear(64, 64), target_size=100)
    Traceback (most recent call last):
    tersor.errors.BudgetError: 100 bytes are too few: ...
    """


class FileFormatError(TersorError, ValueError):
    """Error: a file is damaged, or is not a valid tersor file.

    Examples
    --------
    >>> from pathlib import Path
    >>> Path("notes.tersor").write_text("no model")
    8
    >>> tersor.open("notes.tersor")
    Traceback (most recent call last):
    tersor.errors.FileFormatError: notes.tersor: ...
    """


class TrainingError(TersorError, RuntimeError):
    """Error: training cannot go on; the best model so far is kept.

    Examples
    --------
    >>> model = torch.nn.Linear(32, 32)
    >>> report = tersor.compress(model, ratio=4)
    >>> batches = [(torch.full((8, 32), torch.inf), torch.zeros(8, dtype=torch.long))]
    >>> tersor.finetune(model, batches, epochs=1)
    Traceback (most recent call last):
    tersor.errors.TrainingError: ...
    """


class MissingExtraError(TersorError, ImportError):
    """Error: an optional dependency is missing; the message names the extra to install."""


class QualityWarning(UserWarning):
    """Warning: the compressed model may compute other outputs than the dense model did.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     report = tersor.compress(torch.nn.Linear(64, 64), ratio=30)
    >>> caught[0].category.__name__, str(caught[0].message) in report.warnings
    ('QualityWarning', True)
    """


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
