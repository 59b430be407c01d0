"""One service for all tests, in this process, with real worker processes."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from df2serve.artifact import Ensemble, GoldenTensors, load_ensemble, with_files
from df2serve.inference import predict
from df2serve.service import Settings, create_app
from df2serve.testing import random_ensemble

THRESHOLD = {
    "score": "u",
    "value": 0.9,
    "metric": "dice",
    "required": 0.8,
    "failing": 2,
    "references": 3,
    "kind": "held_out",
    "level": 0.333,
}


@pytest.fixture(scope="session")
def ensembles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of two ensembles: ``cells`` with a threshold and an example, and ``pairs``."""
    root = tmp_path_factory.mktemp("ensembles")
    bare = random_ensemble(root / "cells", members=2, channels=1, classes=2, tile=64)
    image = pattern(60, 70)[None]
    prediction = predict(image, ensemble=bare, axes="CYX")
    references = [
        {
            "name": f"{u}",
            "image_sha256": "0" * 64,
            "kind": "held_out",
            "scores": {"u": u},
            "quality": {"dice": 1 - u},
        }
        for u in (0.1, 0.9, 0.999)
    ]
    calibration = {"thresholds": [THRESHOLD], "references": references}
    golden = GoldenTensors(image=image, probs=prediction.probs, total=prediction.total)
    with_files(
        bare,
        golden.to_files()
        | {"calibration.json": json.dumps(calibration).encode(), "README.md": b"# Cells\n"},
    )
    random_ensemble(root / "pairs", members=1, channels=2, classes=3, tile=64)
    return root


@pytest.fixture(scope="session")
def cells(ensembles: Path) -> Ensemble:
    """The ensemble of the default model."""
    return load_ensemble(ensembles / "cells")


@pytest.fixture(scope="session")
def service(ensembles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of the running service; its models are ``tiny`` and ``pairs``."""
    settings = Settings(
        models=(str(ensembles / "cells"), f"pairs={ensembles / 'pairs'}"),
        state=tmp_path_factory.mktemp("state"),
        devices=("cpu",),
        max_body_bytes=8 << 20,
        max_decode_bytes=1 << 30,
        rate="100000/minute",
    )
    app = create_app(settings)
    with TestClient(
        app,
        base_url="http://127.0.0.1",
        raise_server_exceptions=False,
        client=("127.0.0.1", 50000),
    ) as client:
        wait_until(lambda: client.get("/v1/health/ready").status_code == 200, 300)
        yield client


def pattern(height: int, width: int) -> np.ndarray:
    """An image without noise, so that it is small when compressed."""
    rows, columns = np.mgrid[:height, :width]
    return ((rows * 7 + columns * 3) % 251).astype(np.uint8)


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for something that happens in another process."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
