"""Errors that a user can cause, each saying what was received, what is needed and what to do."""


class TersorError(Exception):
    """Base of every error that tersor raises on purpose."""


class InputError(TersorError, ValueError):
    """A tensor, model, option or checkpoint that cannot be used."""


class BudgetError(InputError):
    """A size that cannot be met; the message names the sizes that can."""


class FileFormatError(TersorError, ValueError):
    """A file that is not a valid tersor file, or is damaged."""


class MissingExtraError(TersorError, ImportError):
    """An optional dependency that is not installed; the message names the extra to install."""
