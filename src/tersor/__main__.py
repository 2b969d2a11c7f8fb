"""The command line: ``python -m tersor``, and what the script ``tersor`` calls."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

_INTERRUPTED = 130


def main() -> None:
    """Run the command line; Ctrl-C counts from the first moment on."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, _interrupt)
    try:
        from tersor.cli import main as run

        run()
    except KeyboardInterrupt:
        _stop()
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            _stop(told=True)
        raise


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Stop at once while a library starts: some take a KeyboardInterrupt for something else."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _stop()
        frame = frame.f_back
    raise KeyboardInterrupt


def _stop(*, told: bool = False) -> None:
    """End with the exit code, which Python would at times replace by that of the signal."""
    if not told:
        print("interrupted; earlier files are as they were", file=sys.stderr)
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
