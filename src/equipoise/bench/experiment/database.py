"""The database that studies are in: its URL, its names, its errors in one line, its lock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from sqlalchemy import create_engine, event, inspect, text
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError, SQLAlchemyError

from equipoise.bench.errors import BenchError

SQLITE_PATIENCE = 120
"""Seconds for which a process waits for others to let go of the SQLite file."""


class StorageError(BenchError):
    """The study cannot be used; the message says why and what to do."""


def sqlite_url(path: Path) -> str:
    """Returns the URL of an SQLite file."""
    return URL.create("sqlite", database=str(path.absolute())).render_as_string(hide_password=False)


def sqlite_path(url: str) -> Path | None:
    """Returns the SQLite file that a URL names; None if it names something else."""
    parsed = _parse(url)
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None


def hide_password(url: str) -> str:
    """Returns a database's URL as it may be shown."""
    return _parse(url).render_as_string(hide_password=True)


def _parse(url: str) -> URL:
    cause: Exception | None = None
    try:
        parsed = make_url(url)
        on_disk = parsed.database not in (None, "", ":memory:")
        if {"sqlite": on_disk, "postgresql": True}.get(parsed.get_backend_name(), False):
            return parsed
    except (ArgumentError, ValueError) as error:  # a port that is no number
        cause = error
    raise StorageError(
        f"--storage {url!r} is no database that can be used: "
        "write sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE."
    ) from cause


def study_names(url: str) -> list[str]:
    """Returns the names of a database's studies.

    It is asked without Optuna, which would make its tables, perhaps while the coordinator makes them.

    Raises:
        StorageError: the database cannot be reached.
    """
    path = sqlite_path(url)
    if path is not None and not path.exists():
        return []
    with clear_errors(url):
        engine = create_engine(url)
        try:
            with engine.connect() as connection:
                if not inspect(connection).has_table("studies"):
                    return []
                rows = connection.execute(text("SELECT study_name FROM studies ORDER BY study_id"))
                return [name for (name,) in rows]
        finally:
            engine.dispose()


@contextmanager
def clear_errors(url: str) -> Iterator[None]:
    """Says in one line what a database has against being used."""
    try:
        yield
    except UpdateFinishedTrialError:  # says what has happened to a run, not to the database
        raise
    except ModuleNotFoundError as error:
        raise StorageError(
            f"{hide_password(url)} needs the package {error.name}: "
            'for PostgreSQL, pip install "equipoise[postgres]" and write postgresql+psycopg://…'
        ) from error
    except KeyError as error:  # Optuna's, of what is not in its tables
        raise StorageError(f"The study in {hide_password(url)} is gone: it was begun anew, or removed.") from error
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", cause)).strip().splitlines()[0]
        raise StorageError(f"{hide_password(url)} cannot be used: {reason}") from error


def remove_damaged(path: Path) -> None:
    """Removes an SQLite file that is none, or none any more; leaves any other as it is."""
    if path.exists():
        engine = create_engine(sqlite_url(path))
        try:
            with engine.connect() as connection:
                connection.execute(text("PRAGMA schema_version"))
        except OperationalError:  # it is locked, or cannot be opened
            return
        except DatabaseError:
            path.unlink()
        finally:
            engine.dispose()


def lock_from_the_start(storage: RDBStorage) -> None:
    """Has every transaction on SQLite take the file's lock when it begins.

    SQLite has no SELECT … FOR UPDATE: two workers would otherwise both find a run waiting, and both take it.
    """

    @event.listens_for(storage.engine, "connect")
    def leave_transactions_to_us(connection: Any, _: object) -> None:
        connection.isolation_level = None

    @event.listens_for(storage.engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    storage.engine.dispose()  # connections made before
