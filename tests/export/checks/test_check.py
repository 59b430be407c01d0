"""What bioimageio.core and the Zoo's formulas say, asked of the real packages."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from df2serve.config import CheckLimits
from df2serve.export.checks import CheckReport, Severity, check_package
from df2serve.export.checks.fiji import Subject, lint
from df2serve.export.checks.package import open_package
from df2serve.export.checks.process import run_confined
from df2serve.export.checks.report import Run, Status, ZooScore
from df2serve.export.checks.validation import Validation
from df2serve.export.checks.zoo import score

Fields = dict[str, Any]
Change = Callable[[Fields, Path], object]
Variant = Callable[[Change], Path]

PARTNERS = ["ilastik", "deepimagej", "icy", "biapy", "careamics"]


SAVE_ANEW = """
import sys
from bioimageio.spec import load_model_description, save_bioimageio_package_as_folder

model = load_model_description(sys.argv[1], perform_io_checks=False)
save_bioimageio_package_as_folder(model, output_path=sys.argv[2])
"""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def report(good: Path, tmp_path_factory: pytest.TempPathFactory) -> CheckReport:
    """Everything about the good package, its code trusted."""
    packed = shutil.make_archive(str(tmp_path_factory.mktemp("packed") / "package"), "zip", good)
    return check_package(packed, trust=[sha256(good / "arch.py").upper()])


@pytest.mark.slow
def test_every_format_passes_the_tests_of_core(report: CheckReport) -> None:
    assert {run.name for run in report.runs} == {"onnx", "pytorch_state_dict", "torchscript"}
    assert all(run.status is Status.PASSED and run.reproduced for run in report.runs), report.runs
    assert report.ok


@pytest.mark.slow
def test_scores_follow_the_formulas(report: CheckReport) -> None:
    zoo = report.zoo
    assert zoo is not None
    assert not zoo.is_upper_bound
    assert [partner.name for partner in zoo.partners if partner.passes] == PARTNERS[:4]
    # format, completeness, core and the three best partners, a quarter each
    assert zoo.collection == pytest.approx((1 + zoo.completeness + 1 + 1) / 4)
    assert zoo.website == pytest.approx(1 + 2 + 4 + zoo.completeness)
    # minimal packages have about .35 to .44
    assert 0.3 < zoo.completeness < 0.6


@pytest.mark.slow
def test_gains_lead_to_the_full_score(report: CheckReport) -> None:
    zoo = report.zoo
    assert zoo is not None
    gains = [item.gain for item in zoo.gains]
    assert gains == sorted(gains, reverse=True)
    assert zoo.collection + sum(gains) <= 1 + 1e-9
    assert any("config" in item.what for item in zoo.gains)
    assert not any("keras" in item.what or "dependencies" in item.what for item in zoo.gains)


@pytest.mark.slow
def test_the_report_is_json(report: CheckReport) -> None:
    content = json.loads(json.dumps(report.to_dict()))
    assert content["ok"] is True
    assert content["runs"][0]["status"] == "passed"


def test_code_of_strangers_is_not_run(variant: Variant, tmp_path: Path) -> None:
    """Neither the wrong hash nor none lets it run; the right one would."""
    sentinel = tmp_path / "EXECUTED"
    bad = f"open({str(sentinel)!r}, 'w').close()\nraise RuntimeError\n"

    def change(fields: Fields, folder: Path) -> None:
        (folder / "arch.py").write_text(bad)
        architecture = fields["weights"]["pytorch_state_dict"]["architecture"]
        architecture["sha256"] = sha256(folder / "arch.py")
        del fields["weights"]["torchscript"]

    folder = variant(change)
    report = check_package(folder, trust=["0" * 64])

    assert not sentinel.exists()
    ran, skipped = report.runs
    assert (ran.name, ran.status) == ("onnx", Status.PASSED)
    assert (skipped.status, skipped.detail) == (Status.SKIPPED, "needs code that is not trusted")
    assert report.zoo is not None
    assert report.zoo.is_upper_bound
    found = {finding.code: finding.message for finding in report.findings}
    assert sha256(folder / "arch.py") in found["CORE002"]
    assert "0" * 64 in found["CORE003"]
    assert not report.ok


@pytest.mark.slow
def test_trusted_code_runs(variant: Variant, tmp_path: Path) -> None:
    """So the test above would see it."""
    sentinel = tmp_path / "EXECUTED"

    def change(fields: Fields, folder: Path) -> None:
        with (folder / "arch.py").open("a") as file:
            file.write(f"\nopen({str(sentinel)!r}, 'w').close()\n")
        architecture = fields["weights"]["pytorch_state_dict"]["architecture"]
        architecture["sha256"] = sha256(folder / "arch.py")

    folder = variant(change)
    report = check_package(folder, only="validation", trust=[sha256(folder / "arch.py")])
    assert sentinel.exists()
    assert report.ok


@pytest.mark.slow
def test_wrong_outputs_fail_the_run(variant: Variant) -> None:
    def change(fields: Fields, folder: Path) -> None:
        path = folder / "test_output.npy"
        np.save(path, np.load(path) + np.float32(0.1))
        fields["outputs"][0]["test_tensor"]["sha256"] = sha256(path)

    report = check_package(variant(change))
    failed = {run.name: run.reproduced for run in report.runs if run.status is Status.FAILED}
    assert failed == {"onnx": False, "torchscript": False}
    places = [finding.place for finding in report.findings if finding.code == "CORE001"]
    assert sorted(places) == ["weights.onnx", "weights.torchscript"]
    zoo = report.zoo
    assert zoo is not None
    assert zoo.gains[0].what == "reproduce the test outputs in one weight format"
    # no run of the model, hence no partner that runs bioimageio.core
    assert [item.name for item in zoo.partners if item.passes] == ["deepimagej", "icy"]


@pytest.mark.slow
def test_an_invalid_description(variant: Variant) -> None:
    """Strings where this format version has mappings, and a field that does not exist."""

    def change(fields: Fields, folder: Path) -> None:
        fields.update(format_version="0.5.12", mood="good")

    report = check_package(variant(change), only="validation")
    places = {finding.place for finding in report.findings if finding.code == "SPEC001"}
    assert "mood" in places
    assert {run.detail for run in report.runs} == {"the description is not valid"}
    assert report.zoo is None


def test_a_package_of_plain_bioimageio_spec(good: Path, tmp_path: Path) -> None:
    """It writes its mappings, which Fiji's reader does not know."""
    # in a process of its own, because bioimageio.spec leaves files open
    folder = tmp_path / "saved"
    command = [sys.executable, "-c", SAVE_ANEW, str(good / "rdf.yaml"), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    report = check_package(folder, only="fiji")
    found = {(finding.code, finding.place) for finding in report.findings}
    assert {("FIJI002", "documentation"), ("FIJI003", "covers[0]")} <= found
    assert ("FIJI001", "format_version") in found
    # the remedy works: the description that it came from is accepted
    assert check_package(good, only="fiji").ok


@pytest.mark.slow
def test_instanseg(instanseg: Path) -> None:
    """The validation misses the cover, too, and nothing is fetched to look for its authors."""
    report = check_package(instanseg / "brightfield_nuclei/0.1.1", only="validation")
    errors = [item for item in report.findings if item.severity is Severity.ERROR]
    assert {(item.code, item.place) for item in errors} == {("SPEC001", "covers[0].source")}
    assert any("due to connection timeout" in item.message for item in report.findings)


@pytest.mark.slow
def test_instanseg_runs(instanseg: Path, tmp_path: Path, good: Path) -> None:
    """With a cover, its TorchScript weights run without any code of the package."""
    folder = shutil.copytree(instanseg / "brightfield_nuclei/0.1.1", tmp_path / "package")
    shutil.copy(good / "cover.png", folder)
    report = check_package(folder)
    assert [(run.name, run.status) for run in report.runs] == [("torchscript", Status.PASSED)]
    assert report.zoo is not None
    # a quarter of the fields are set; of the partners ilastik is left
    assert report.zoo.completeness == pytest.approx(0.25, abs=0.02)
    assert report.zoo.collection == pytest.approx((1 + report.zoo.completeness + 1 + 1 / 3) / 4)
    assert report.zoo.website == pytest.approx(7 + report.zoo.completeness)


# -- scores -------------------------------------------------------------------------------------


def scored(path: Path, *, runs: tuple[Run, ...], missing: tuple[str, ...] = ()) -> ZooScore:
    """The scores of a package of which 40 of 100 fields are set."""
    with open_package(path, CheckLimits()) as (package, _):
        assert package is not None
        subject = Subject(package)
        validation = Validation(
            valid=True, completeness=0.4, missing=missing, fields=100, findings=(), runs=runs
        )
        return score(subject, validation, lint(subject))


def test_scores_of_a_package_that_passes(good: Path) -> None:
    fields = ("config.bioimageio.task", "config.bioimageio.modality", "icon", "weights.keras_v3")
    zoo = scored(good, runs=(Run("onnx", Status.PASSED, "", True),), missing=fields)
    # (1 + .4 + 1 + 3/3) / 4, and 1 + 2 + 4 + .4
    assert zoo.collection == pytest.approx(0.85)
    assert zoo.website == pytest.approx(7.4)
    assert not zoo.is_upper_bound
    assert [gain.what for gain in zoo.gains] == ["set config.bioimageio: task, modality"]
    assert zoo.gains[0].gain == pytest.approx(0.25 * 2 / 100)


def test_scores_of_a_package_that_fails(good: Path) -> None:
    zoo = scored(good, runs=(Run("onnx", Status.FAILED, "", False),))
    # deepimagej and icy are left: (1 + .4 + 0 + 2/3) / 4, and 1 + .4
    assert zoo.collection == pytest.approx(2.0666667 / 4)
    assert zoo.website == pytest.approx(1.4)
    assert [gain.gain for gain in zoo.gains] == pytest.approx([0.25, *[0.25 / 3] * 3])


def test_numbers_beside_maps_still_fail_the_tests_of_partners(variant: Variant) -> None:
    """They are a warning, but the Zoo compares them as well."""

    def change(fields: Fields, folder: Path) -> None:
        fields["outputs"][0]["axes"] = fields["outputs"][0]["axes"][:2]

    zoo = scored(variant(change), runs=())
    reasons = {item.name: item.reason for item in zoo.partners if not item.passes}
    assert "FIJI067" in reasons["deepimagej"]
    assert "FIJI067" in reasons["icy"]


def test_scores_without_runs_are_upper_bounds(good: Path) -> None:
    zoo = scored(good, runs=())
    assert zoo.is_upper_bound
    assert zoo.collection == pytest.approx(0.85)


def test_scores_of_instanseg(instanseg: Path) -> None:
    """Its scales cost it Fiji and icy, its lack of a state dict BiaPy."""
    path = instanseg / "brightfield_nuclei/0.1.1"
    zoo = scored(path, runs=(Run("torchscript", Status.PASSED, "", True),))
    assert [partner.name for partner in zoo.partners if partner.passes] == ["ilastik"]
    assert "FIJI018" in next(item.reason for item in zoo.partners if item.name == "icy")
    assert zoo.collection == pytest.approx((1 + 0.4 + 1 + 1 / 3) / 4)


# -- processes ----------------------------------------------------------------------------------


def test_a_process_is_stopped_with_its_children(tmp_path: Path) -> None:
    code = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"
    ended = run_confined([sys.executable, "-c", code], tmp_path, seconds=1.0)
    assert not ended.ok
    assert ended.note == "stopped after 1 s"


def test_a_process_sees_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    code = "import os, sys; sys.exit(str(sorted(os.environ)))"
    ended = run_confined([sys.executable, "-c", code], tmp_path, seconds=60.0)
    assert "HOME" in ended.note
    assert "SECRET" not in ended.note


def test_a_crash_is_told(tmp_path: Path) -> None:
    code = "import os; os.abort()"
    ended = run_confined([sys.executable, "-c", code], tmp_path, seconds=60.0)
    assert not ended.ok
    assert ended.note.startswith("ended by SIGABRT")


def test_a_validation_that_does_not_end(good: Path) -> None:
    report = check_package(good, only="validation", limits=CheckLimits(max_seconds=0.05))
    (finding,) = report.findings
    assert (finding.code, finding.message) == ("CORE004", "stopped after 0.05 s")
