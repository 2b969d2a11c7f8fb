# SPDX-License-Identifier: Apache-2.0
"""Run the command line, for ``python -m tersor`` and for the script ``tersor``."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

from tersor.version import __version__

_INTERRUPTED = 130


def main() -> None:
    """Run the command line, and stop it cleanly on Ctrl-C, also while libraries are imported."""
    # Another handler means that the caller ignores or handles Ctrl-C itself.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        if sys.argv[1:] == ["--version"]:  # at once: the command line itself takes longer to import
            print(f"tersor {__version__}")
            return
        from tersor.cli import main as run

        run()
    except KeyboardInterrupt:
        _stop()
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            _stop(told=True)
        raise


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise `KeyboardInterrupt`, or end the process at once while a module is imported.

    Some libraries catch a `KeyboardInterrupt` during their import and go on.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _stop()
        frame = frame.f_back
    raise KeyboardInterrupt


def _stop(*, told: bool = False) -> None:
    """End the process with exit code 130, which Python would sometimes replace by the signal's."""
    if not told:
        print("interrupted; earlier files are as they were", file=sys.stderr)
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
