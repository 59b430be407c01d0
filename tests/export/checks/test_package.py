"""Hostile and damaged packages: one clear finding, nothing executed, nothing written elsewhere."""

import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from df2serve.config import CheckLimits
from df2serve.errors import SourceNotFoundError
from df2serve.export.checks import CheckReport, check_package
from df2serve.export.checks.package import PACKAGE_PROBLEMS

SMALL = CheckLimits(
    max_files=50,
    max_bytes=8 << 20,
    max_ratio=20,
    free_bytes=1 << 20,
    max_description_bytes=1 << 16,
    max_description_nodes=2000,
)
MODEL = b"type: model\nname: x\n"


class Attack(zipfile.ZipFile):
    """An archive that says what honest ones do not."""

    def put(self, name: str, content: bytes = b"", mode: int = 0, flags: int = 0) -> None:
        entry = zipfile.ZipInfo("placeholder")
        entry.filename = entry.orig_filename = name
        entry.external_attr = mode << 16
        entry.compress_type = zipfile.ZIP_DEFLATED
        self.writestr(entry, content)
        entry.flag_bits |= flags


def zipped(write: Callable[[Attack], object]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = folder / "package.zip"
        with Attack(path, "w") as archive:
            archive.put("rdf.yaml", MODEL)
            write(archive)
        return path

    return build


def description(text: bytes) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / "rdf.yaml").write_bytes(text)
        return folder / "rdf.yaml"

    return build


def truncated(folder: Path) -> Path:
    path = zipped(lambda archive: archive.put("weights.pt", os.urandom(9999)))(folder)
    path.write_bytes(path.read_bytes()[:5000])
    return path


def flipped(folder: Path) -> Path:
    path = zipped(lambda archive: archive.put("weights.pt", os.urandom(9999)))(folder)
    content = bytearray(path.read_bytes())
    content[5000] ^= 255
    path.write_bytes(content)
    return path


def linked(folder: Path) -> Path:
    package = folder / "package"
    package.mkdir()
    (package / "rdf.yaml").write_bytes(MODEL)
    (package / "weights.pt").symlink_to("/etc/hostname")
    return package


def piped(folder: Path) -> Path:
    package = folder / "package"
    package.mkdir()
    (package / "rdf.yaml").write_bytes(MODEL)
    os.mkfifo(package / "weights.pt")
    return package


def many(archive: Attack) -> None:
    for number in range(60):
        archive.put(f"{number}")


def twice(archive: Attack) -> None:
    archive.put("a.txt")
    archive.put("A.txt")


def empty_archive(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "package.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing else")
    return folder / "package.zip"


def no_archive(folder: Path) -> Path:
    (folder / "package.zip").write_bytes(b"no archive")
    return folder / "package.zip"


LINK, DEVICE = stat.S_IFLNK | 0o777, stat.S_IFCHR | 0o666
LAUGHS = b"a0: &a0 [x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 30)
)
EXECUTED = b"!!python/object/apply:os.system ['touch EXECUTED']"
ATTACKS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "no archive": ("PKG001", no_archive),
    "upwards": ("PKG002", zipped(lambda archive: archive.put("../ESCAPED"))),
    "upwards inside": ("PKG002", zipped(lambda archive: archive.put("a/../../ESCAPED"))),
    "absolute": ("PKG002", zipped(lambda archive: archive.put("/ESCAPED"))),
    "backslash": ("PKG002", zipped(lambda archive: archive.put("..\\ESCAPED"))),
    "drive": ("PKG002", zipped(lambda archive: archive.put("C:/ESCAPED"))),
    "link": ("PKG003", zipped(lambda archive: archive.put("weights.pt", b"/etc", LINK))),
    "device": ("PKG003", zipped(lambda archive: archive.put("weights.pt", b"", DEVICE))),
    "link in a folder": ("PKG003", linked),
    "pipe in a folder": ("PKG003", piped),
    "too many files": ("PKG004", zipped(many)),
    "too large": ("PKG004", zipped(lambda archive: archive.put("a", os.urandom(9 << 20)))),
    "bomb": ("PKG004", zipped(lambda archive: archive.put("a", bytes(4 << 20)))),
    "large description": ("PKG004", description(b"a: " + b"x" * (1 << 17))),
    "laughs": ("PKG004", description(LAUGHS)),
    "deep": ("PKG004", description(b"a: " + b"[" * 150 + b"]" * 150)),
    "endless": ("PKG004", description(b"a: &a [*a]")),
    "truncated": ("PKG001", truncated),
    "flipped": ("PKG005", flipped),
    "encrypted": ("PKG005", zipped(lambda archive: archive.put("a", b"x", flags=1))),
    "twice": ("PKG005", zipped(twice)),
    "no description": ("PKG006", empty_archive),
    "no YAML": ("PKG007", description(b"a: [")),
    "no text": ("PKG007", description(b"\xff\xfe\x00")),
    "very deep": ("PKG004", description(b"[" * 30000)),
    "a list": ("PKG007", description(b"- a")),
    "a program": ("PKG007", description(b"a: " + EXECUTED)),
    "a data set": ("PKG008", description(b"type: dataset")),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_one_finding_and_nothing_else(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, build = ATTACKS[name]
    package, temporary = tmp_path / "package", tmp_path / "temporary"
    package.mkdir()
    temporary.mkdir()
    path = build(package)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.chdir(temporary)

    report = check_package(path, limits=SMALL)

    assert [finding.code for finding in report.findings] == [code]
    assert not report.ok
    assert report.model is None
    assert report.runs == ()
    assert report.zoo is None
    assert sorted(tmp_path.rglob("*")) == before
    assert not list(Path("/").glob("ESCAPED"))


def test_every_problem_has_an_example() -> None:
    assert [problem.code for problem in PACKAGE_PROBLEMS] == sorted(
        {code for code, _ in ATTACKS.values()}
    )


def test_nothing_there() -> None:
    with pytest.raises(SourceNotFoundError, match="give a package"):
        check_package("missing.zip")


def lint_of(path: Path) -> CheckReport:
    return check_package(path, only="fiji")


def test_zip_folder_and_description_give_the_same(good: Path, tmp_path: Path) -> None:
    packed = Path(shutil.make_archive(str(tmp_path / "package"), "zip", good))
    reports = [lint_of(path) for path in (packed, good, good / "rdf.yaml")]
    assert len({report.findings for report in reports}) == 1
    assert all(report.ok and report.model == "a sketch of a model" for report in reports)
    assert [report.sha256 is None for report in reports] == [False, True, False]


def test_a_package_in_a_folder_of_the_archive(good: Path, tmp_path: Path) -> None:
    """It is looked into all the same; only the place of the description is wrong."""
    packed = shutil.make_archive(str(tmp_path / "package"), "zip", good.parent, good.name)
    found = [item for item in lint_of(Path(packed)).findings if item.code != "FIJI016"]
    assert [(item.code, item.place) for item in found] == [("FIJI001", "package/rdf.yaml")]


def test_files_outside_are_not_read(good: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(good, tmp_path / "package")
    shutil.move(folder / "weights.onnx", tmp_path / "weights.onnx")
    text = (folder / "rdf.yaml").read_text().replace("weights.onnx", "../weights.onnx")
    (folder / "rdf.yaml").write_text(text)
    found = {item.code: item.message for item in lint_of(folder).findings}
    assert found.pop("FIJI016")
    assert found == {"FIJI059": "../weights.onnx is not in the package"}


def test_an_honest_large_package_is_opened(tmp_path: Path) -> None:
    """What does not shrink is no bomb."""
    path = zipped(lambda archive: archive.put("weights.pt", os.urandom(4 << 20)))(tmp_path)
    report = check_package(path, only="fiji", limits=SMALL)
    assert "FIJI063" in {finding.code for finding in report.findings}
