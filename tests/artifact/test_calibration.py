"""What ``calibration.json`` says, and what it must not say."""

import json

import pytest

from df2serve.artifact.manifest import (
    Calibration,
    Reference,
    ReferenceKind,
    ReviewThreshold,
    parse_calibration,
)
from df2serve.errors import ManifestError


def threshold(kind: ReferenceKind, level: float | None) -> ReviewThreshold:
    return ReviewThreshold(
        score="u", value=0.3, metric="dice", required=0.8, failing=3, references=9, kind=kind,
        level=level,
    )  # fmt: skip


def reference(name: str, kind: ReferenceKind, **scores: float) -> Reference:
    return Reference(
        name=name, image_sha256="0" * 64, kind=kind, group="a", scores=scores, quality={"dice": 0.7}
    )


def test_content_survives_writing_and_reading() -> None:
    calibration = Calibration(
        config={"views": 4, "grid": {"kind": "overlap"}},
        thresholds=(threshold("held_out", 0.25),),
        references=(reference("a", "held_out", u=0.1), reference("b", "out_of_fold", u=0.2)),
    )
    assert parse_calibration(calibration.to_json()) == calibration


def test_out_of_fold_images_guarantee_nothing() -> None:
    assert threshold("out_of_fold", None).level is None
    content = Calibration(thresholds=(threshold("held_out", 0.25),)).to_json()
    dishonest = content.replace(b"held_out", b"out_of_fold")
    with pytest.raises(ManifestError, match="out_of_fold references guarantee no level"):
        parse_calibration(dishonest)


def test_scores_of_different_kinds_do_not_mix() -> None:
    calibration = Calibration(
        references=(
            reference("a", "held_out", u=0.1),
            reference("b", "out_of_fold", u=0.2),
            reference("c", "held_out", other=0.3),
            reference("d", "held_out", u=0.4),
        )
    )
    assert calibration.reference_scores("u", "held_out") == (0.1, 0.4)
    assert calibration.reference_scores("u", "out_of_fold") == (0.2,)


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_numbers_are_finite(value: str) -> None:
    content = json.dumps(Calibration(references=(reference("a", "held_out", u=0.5),)).model_dump())
    with pytest.raises(ManifestError, match=r"references\.0\.scores\.u"):
        parse_calibration(content.replace("0.5", value).encode())


def test_files_of_version_1_are_read() -> None:
    calibration = Calibration(references=(reference("a", "held_out", u=0.1),))
    old = json.loads(calibration.to_json()) | {"schema_version": 1}
    for row in old["references"]:
        del row["statistics"]
    assert parse_calibration(json.dumps(old).encode()) == calibration
    newer = json.dumps(old | {"schema_version": 3}).encode()
    with pytest.raises(ManifestError, match="schema version 3, this df2serve reads up to 2"):
        parse_calibration(newer)
