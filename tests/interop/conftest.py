"""A real ImageJ, without its window."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def imagej() -> Callable[[str, Path], str]:
    """Run a macro, with a folder for its file; return what it prints.

    It runs in batch mode, where prints go to standard output. Dialogs need a display, if a virtual
    one.
    """
    places = [Path(sys.prefix) / "foreign/ij.jar", Path("/usr/share/java/ij.jar")]
    jar = next((place for place in places if place.is_file()), None)
    missing = [name for name in ("java", "xvfb-run") if shutil.which(name) is None]
    if jar is None:
        missing.append("ij.jar ('make foreign' fetches it)")
    if missing:
        pytest.skip(f"ImageJ needs {', '.join(missing)}")
    command = ["xvfb-run", "-a", "java", "-Xmx512m", "-cp", str(jar), "ij.ImageJ", "-batch"]

    def run(script: str, folder: Path) -> str:
        (folder / "run.ijm").write_text(script)
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [*command, str(folder / "run.ijm")],
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                printed, errors = process.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                pytest.fail("ImageJ does not end; an error in a macro opens a dialog that waits")
        assert process.returncode == 0, errors
        return printed

    return run
