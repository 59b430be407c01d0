"""Several workers on the processor: each with its share of the cores and images of its own."""

import io
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import tifffile

from df2serve import predict
from df2serve.testing import random_ensemble


def workers_of(pid: int) -> list[psutil.Process]:
    children = psutil.Process(pid).children(recursive=True)
    return [each for each in children if "df2serve.service.worker" in each.cmdline()]


@pytest.mark.parametrize("given", [None, pytest.param("3", marks=pytest.mark.slow)])
def test_workers_share_the_cores_and_the_images(running, tmp_path, monkeypatch, given) -> None:
    for name in ("OMP_NUM_THREADS", "THP_MEM_ALLOC_ENABLE"):
        monkeypatch.delenv(name, raising=False)
        if given:
            monkeypatch.setenv(name, given)
    random_ensemble(tmp_path / "cells", members=1, channels=1, classes=2, tile=64)
    values = {
        "models": (f"cells={tmp_path / 'cells'}",),
        "state": tmp_path / "state",
        "devices": ("cpu", "cpu"),
    }
    image = np.random.default_rng(0).integers(0, 256, (300, 400), np.uint8)
    buffer = io.BytesIO()
    np.save(buffer, image)
    mask = predict(image, ensemble=tmp_path / "cells").mask
    with running("uvicorn", values) as (client, process):

        def ask(_: int) -> bool:
            answer = client.post(
                "/v1/models/cells/predict",
                content=buffer.getvalue(),
                headers={"Accept": "image/tiff"},
            )
            return np.array_equal(tifffile.imread(io.BytesIO(answer.content)), mask)

        both = workers_of(process.pid)
        assert len(both) == 2
        share = str(max(1, len(os.sched_getaffinity(0)) // 2))
        assert {each.environ()["OMP_NUM_THREADS"] for each in both} == {given or share}
        assert {each.environ()["THP_MEM_ALLOC_ENABLE"] for each in both} == {given or "1"}
        before = [each.cpu_times().user for each in both]
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(ask, range(12)))
        assert all(each.cpu_times().user > b + 0.1 for each, b in zip(both, before, strict=True))
