"""The Bento installs what the service needs, and packs the package."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def test_it_installs_what_the_service_needs() -> None:
    """BentoML itself is there already; of what publishes, ``hf://`` needs the clients."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    clients = [item for item in extras["publish"] if not item.startswith("df2serve")]
    needed = {*project["dependencies"], *extras["serve"], *clients}
    listed = yaml.safe_load((ROOT / "bentofile.yaml").read_text(encoding="utf-8"))["python"]
    assert listed["packages"] == sorted(item for item in needed if not item.startswith("bentoml"))


def test_it_packs_the_package() -> None:
    bento = yaml.safe_load((ROOT / "bentofile.yaml").read_text(encoding="utf-8"))
    assert bento["include"] == ["df2serve/**", "LICENSE"]
    assert bento["exclude"] == ["**/__pycache__/"]
