"""A new revision of an ensemble takes the place of the old one while requests go on."""

import io
import shutil
import time

import numpy as np
import pytest

from df2serve.testing import random_ensemble

pytestmark = pytest.mark.slow


def test_a_new_revision_is_taken_without_losing_a_request(running, tmp_path) -> None:
    folder = tmp_path / "cells"
    old = random_ensemble(folder, members=1, channels=1, classes=2, tile=64)
    new = random_ensemble(tmp_path / "new", members=2, channels=1, classes=2, tile=64)
    values = {
        "models": (f"cells={folder}",),
        "state": tmp_path / "state",
        "devices": ("cpu",),
        "poll_seconds": 0.5,
    }
    buffer = io.BytesIO()
    np.save(buffer, np.arange(4800, dtype=np.uint16).reshape(60, 80))
    seen = []
    with running("uvicorn", values) as (client, _):
        end = time.monotonic() + 120
        while new.sha256 not in seen:
            assert time.monotonic() < end, "the new revision was not taken in time"
            answer = client.post("/v1/models/cells/predict", content=buffer.getvalue())
            assert answer.status_code == 200, answer.text
            seen.append(answer.headers["df2-model-digest"].removeprefix("sha256:"))
            if len(seen) == 3:
                folder.rename(tmp_path / "old")
                shutil.copytree(tmp_path / "new", folder)
    changed = seen.index(new.sha256)
    assert changed >= 3
    assert set(seen[:changed]) == {old.sha256}
