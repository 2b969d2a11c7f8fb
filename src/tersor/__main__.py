"""The command line: ``python -m tersor``, and what the script ``tersor`` calls."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C counts from the first moment on, while libraries start too."""
    try:
        from tersor.cli import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted; earlier files are as they were", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
