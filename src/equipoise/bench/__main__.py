"""`python -m equipoise`, and the command `equipoise`: the command line, if what it needs is installed."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line."""
    try:
        from equipoise.bench.cli import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "equipoise":
            raise
        print(
            f'error: {error.name} is missing. The command line needs an extra: pip install "equipoise[bench]"',
            file=sys.stderr,
        )
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()
