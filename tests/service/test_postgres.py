"""Jobs in a Postgres database, of a server that the test starts."""

import io
import os
import pwd
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np
import psycopg
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def database(tmp_path_factory):
    """URL of an empty database; root's Postgres runs as another user, because it refuses root."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not programs:
        pytest.skip("no Postgres; apt: postgresql")
    folder = tmp_path_factory.mktemp("postgres")
    as_user = {}
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        for parent in folder.parents[:2]:
            parent.chmod(0o711)
        as_user = {"user": user.pw_uid, "group": user.pw_gid}
    data = folder / "data"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    initdb = [programs[-1].with_name("initdb"), "-A", "trust", "-U", "ada", "-D", data]
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=folder, **as_user)
    command = [programs[-1], "-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1"]
    with subprocess.Popen(command, cwd=folder, **as_user) as server:
        yield f"postgresql://ada@127.0.0.1:{port}/jobs"
        server.send_signal(signal.SIGINT)
    shutil.rmtree(folder)


def test_jobs_survive_in_postgres(database, running, ensembles, tmp_path) -> None:
    values = {
        "models": (str(ensembles / "cells"),),
        "state": tmp_path,
        "devices": ("cpu",),
        "database": database,
    }
    images = [np.full((700, 700), number, np.uint8) for number in range(3)]
    files = []
    for image in images:
        image[::7, ::5] += 90
        np.save(stream := io.BytesIO(), image)
        files.append(("image", ("a.npy", stream.getvalue())))
    with running("uvicorn", values) as (client, process):
        place = client.post("/v1/jobs", files=files).headers["location"]
        while not client.get(place).json()["progress"]["done"]:
            assert process.poll() is None
        process.kill()
        process.wait()
    with running("uvicorn", values) as (client, _):
        while (job := client.get(place).json())["state"] in ("accepted", "running"):
            pass
    assert (job["state"], job["images"]["successful"]) == ("successful", 3)
    assert not list(tmp_path.glob("*.sqlite*"))
    query = "select status from dbos.workflow_status where name = 'df2serve.job'"
    with psycopg.connect(database) as connection:
        assert "SUCCESS" in {status for (status,) in connection.execute(query)}
