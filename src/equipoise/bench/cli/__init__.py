"""The command line, thin: a file a command, which reads options and calls `equipoise.bench.experiment`.

What a command needs is imported when it runs, so that `--help` and a mistyped option are answered at once.
"""

from equipoise.bench.cli import check, compare, diagnose, init, methods, problems, report, reproduce, worker
from equipoise.bench.cli._app import app

__all__ = ["app", "check", "compare", "diagnose", "init", "methods", "problems", "report", "reproduce", "worker"]
