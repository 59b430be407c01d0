"""The wheel, built and installed as a stranger would get it."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import df2serve

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command, show what it said if it fails, and return its output."""
    result = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with the backend of this environment, so that no network is needed."""
    folder = tmp_path_factory.mktemp("dist")
    build = ("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    run(sys.executable, *build, cwd=folder)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts of a new environment that holds the wheel and borrows what the wheel requires."""
    folder = tmp_path_factory.mktemp("environment")
    uv = (sys.executable, "-m", "uv")
    run(*uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder, cwd=folder)
    scripts = folder / SCRIPTS.name
    install = ("pip", "install", "--quiet", "--offline", "--no-deps", "--python", folder)
    run(*uv, *install, wheel, cwd=folder)
    packages = next(folder.rglob("site-packages"))
    # a path that a .pth file adds runs no .pth files of its own: the editable install stays out
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib"))
    return scripts


def test_contents(wheel: Path) -> None:
    run(SCRIPTS / "check-wheel-contents", wheel, cwd=ROOT)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"df2serve/py.typed", "df2serve_training/py.typed"} <= names
    page = {str(path.relative_to(ROOT)) for path in (ROOT / "df2serve/service/page").rglob("*.*")}
    assert len(page) > 5
    assert page <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_import_from_another_folder(installed: Path, tmp_path: Path) -> None:
    code = (
        "import df2serve, df2serve_training as t; print(df2serve.__file__, t.__file__, sep='\\n')"
    )
    files = run(installed / "python", "-I", "-c", code, cwd=tmp_path).splitlines()
    assert len(files) == 2
    assert all(Path(file).is_relative_to(installed.parent) for file in files)


def test_command_line(installed: Path, tmp_path: Path) -> None:
    assert df2serve.__version__ in run(installed / "df2serve", "--version", cwd=tmp_path)
