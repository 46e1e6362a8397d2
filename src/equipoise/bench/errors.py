"""What a person can put right: one kind of error, which the command line says in a line."""

from __future__ import annotations


class BenchError(Exception):
    """Something asked for cannot be had; the message says what was found, and what to do."""
