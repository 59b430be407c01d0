"""What ``df2serve serve`` says when it cannot begin."""

import subprocess
import sys
from pathlib import Path


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    program = "from df2serve.cli import main; main()"
    arguments = ["serve", "nowhere", "--port", "0", "--state", str(tmp_path / "state")]
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 2, ended.stderr
    assert "no ensemble at nowhere; expected a folder or a zip file" in ended.stderr
    assert "Traceback" not in ended.stderr
