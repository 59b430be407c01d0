"""The text of the repository: no addresses of one machine, no names that do not exist."""

import importlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import df2serve
from df2serve.artifact import _schemes

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]

# in parts, so that this file does not hold what it looks for
REGISTRIES = [
    re.escape(".".join(parts))
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("anaconda", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("debian", "org"),
        ("crates", "io"),
        ("golang", "org"),
    )
]
MACHINE_FOLDERS = [
    rf"(?<![\w.~\])}}/])/{folder}/"
    for folder in ("work", "root", "tmp", "mnt", r"home/\w+", r"Users/\w+", "opt/(?:wheels|pypi)")
]
FORBIDDEN = re.compile("|".join(REGISTRIES + MACHINE_FOLDERS))
DOTTED = re.compile(r"(?<![\w./-])df2serve(?:_training)?(?:\.[A-Za-z_]\w*)+")


def tracked_files() -> list[Path]:
    """Files of the repository, as git knows them."""
    command = ["git", "ls-files", "-z"]
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("not a git repository")
    return [ROOT / name for name in result.stdout.split("\0") if name]


def test_no_registries_and_no_paths_of_a_machine() -> None:
    found = []
    for path in filter(Path.is_file, tracked_files()):
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in FORBIDDEN.finditer(text)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("cd /" + "work/main", True),
        ("'/" + "home/ada/x'", True),
        ("https://" + "pypi" + ".org/simple", True),
        ("docs/work/main", False),
        ("{folder}/" + "tmp/x", False),
        ("see docs/tmp/x", False),
    ],
)
def test_the_search_finds_what_it_should(text: str, is_found: bool) -> None:
    assert bool(FORBIDDEN.search(text)) is is_found


def test_the_citation_names_the_version() -> None:
    assert f"\nversion: {df2serve.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def entry_point_groups() -> set[str]:
    """Groups that we register in, and the one that we ask."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {_schemes.GROUP, *project.get("entry-points", {})}


def resolve(dotted: str) -> object:
    """Import the longest module that the name starts with and look up the rest."""
    package, *names = dotted.split(".")
    found: object = importlib.import_module(package)
    for depth, name in enumerate(names, start=1):
        if not hasattr(found, name):
            importlib.import_module(".".join([package, *names[:depth]]))
        found = getattr(found, name)
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_dotted_names_of_the_documents_exist(document: Path) -> None:
    missing = []
    for name in sorted(set(DOTTED.findall(document.read_text())) - entry_point_groups()):
        try:
            resolve(name)
        except ImportError:
            missing.append(name)
    assert missing == []
