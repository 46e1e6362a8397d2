"""A PostgreSQL server for a test: on a Unix socket, in a temporary folder, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

REQUIRED = "EQUIPOISE_REQUIRE_POSTGRESQL"
"""With this in the environment a missing server is a failure and no reason to skip."""


def programs():
    """The folder with initdb and pg_ctl."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "pg_ctl").exists():
            return folder
    message = "needs PostgreSQL's initdb and pg_ctl (on Debian and Ubuntu: apt install postgresql)"
    if os.environ.get(REQUIRED):
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def postgresql():
    """Yields the URL of a fresh database."""
    folder = programs()
    place = Path(tempfile.mkdtemp(prefix="pg"))  # short: a socket's path has room for some 100 characters
    owner = {}
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        user = pwd.getpwnam("nobody")
        os.chown(place, user.pw_uid, user.pw_gid)
        owner = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def run(program, *arguments):
        command = [folder / program, "-D", place / "data", *arguments]
        done = subprocess.run(
            command,
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            env={**os.environ, "LC_ALL": "C"},
            **owner,
        )
        assert done.returncode == 0, done.stderr

    try:
        run("initdb", "-U", "equipoise", "-A", "trust", "--no-sync", "-E", "UTF8")
        options = f"-c listen_addresses= -c unix_socket_directories={place} -c fsync=off"
        run("pg_ctl", "start", "-w", "-l", str(place / "log"), "-o", options)
        try:
            yield f"postgresql+psycopg://equipoise@/postgres?host={place}"
        finally:
            run("pg_ctl", "stop", "-m", "immediate")
    finally:
        shutil.rmtree(place)
