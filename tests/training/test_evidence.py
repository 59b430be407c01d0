"""Examinations of rankings, from folders to tables, and their statistics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from df2serve.artifact import Ensemble, load_ensemble, with_files
from df2serve.config import PRESETS
from df2serve.errors import ConfigError, ImageMismatchError, InputError
from df2serve.inference import Predictor
from df2serve.testing import CellScene, generate_cells, random_ensemble
from df2serve_training._evidence_rows import EvidenceSettings, ImageEvidence
from df2serve_training._evidence_statistics import (
    coverage_rows,
    detection_rows,
    failure_rows,
    with_oddness,
)
from df2serve_training.evaluate import find_labeled_files
from df2serve_training.evidence import examine, parse_group
from df2serve_training.folds import Splits
from df2serve_training.settings import FoldSettings

SCENE = CellScene(shape=(72, 80), n_cells=4)
FAST = PRESETS["accurate"].updated(views=1)
SETTINGS = EvidenceSettings(resamples=50, splits=4, pixels_per_image=200)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evidence")
    for group, seeds in (("a", range(4)), ("b", range(10, 13))):
        for seed in seeds:
            sample = generate_cells(SCENE, seed)
            for kind, pixels in (("images", sample.image[0]), ("masks", 255 * sample.mask)):
                (root / group / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / group / kind / f"{seed}.png")
    return root


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    target = tmp_path_factory.mktemp("ensembles") / "tiny"
    return random_ensemble(target, members=2, channels=1, classes=2, tile=64)


def group_of(folder: Path, *, labeled: bool = True):
    masks = f",{folder / 'masks'}" if labeled else ""
    return parse_group(f"{folder.name}={folder / 'images'}{masks}", num_classes=2)


@pytest.mark.slow
def test_the_verb(df2serve, ensemble: Ensemble, folders: Path, tmp_path: Path) -> None:
    a, b = folders / "a", folders / "b"
    out = tmp_path / "out"
    groups = [f"a={a / 'images'},{a / 'masks'}", f"b={b / 'images'}"]
    finished = df2serve("evidence", ensemble.source, *groups, "-o", out, "--views", "1")
    assert finished.code == 0, finished.err
    assert "b: u AUROC" in finished.out
    assert "a: one_minus_pairwise_dice AURC" in finished.out
    assert f"tables and figures: {out}" in finished.out


def test_the_verb_wants_groups(df2serve, ensemble: Ensemble, tmp_path: Path) -> None:
    finished = df2serve("evidence", ensemble.source, "images", "-o", tmp_path / "out")
    assert finished.code == 2
    assert "expected NAME=IMAGES or NAME=IMAGES,MASKS" in finished.err


def test_from_folders_to_tables(ensemble: Ensemble, folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    groups = [group_of(folders / "a"), group_of(folders / "b", labeled=False)]
    examine(ensemble, groups, target=out, settings=SETTINGS, config=FAST)
    content = json.loads((out / "evidence.json").read_text(), parse_constant=pytest.fail)
    images = pd.read_csv(out / "images.csv")
    assert list(images["group"]) == ["a"] * 4 + ["b"] * 3
    with Predictor(ensemble, config=FAST) as predictor:
        for row in content["images"]:
            path = folders / row["group"] / "images" / f"{row['file']}.png"
            scores = predictor.predict(path).scores
            assert row["scores"]["u_top"] == pytest.approx(scores.u_top)
    a_u, b_u = (images.loc[images["group"] == name, "scores.u"] for name in "ab")
    (u,) = [row for row in content["detection"] if row["score"] == "u"]
    assert u["auroc"] == pytest.approx(stats.mannwhitneyu(b_u, a_u).statistic / 12)
    assert {row["group"] for row in content["failures"]} == {"a", "all"}
    assert {path.name for path in out.glob("*.png")} == {"scores.png", "risk_coverage.png"}
    assert content["groups"][0]["calibration_error"] > 0
    assert content["groups"][1]["mean_dice"] is None


def test_images_of_the_training_are_told_or_left_to_members_that_did_not_see_them(
    folders: Path, tmp_path: Path
) -> None:
    opened = random_ensemble(tmp_path / "ens", members=2, channels=1, classes=2, tile=64)
    a, b = group_of(folders / "a"), group_of(folders / "b")
    labeled = find_labeled_files(a.images, a.masks, settings=a.settings)
    images = {
        name: {"fold": number % 2, "image_sha256": sha256, "mask_sha256": "0" * 64}
        for number, (name, sha256) in enumerate(labeled.hashes.items())
    }
    splits = Splits(folds=FoldSettings(count=2), images=images)
    with_files(opened, {"splits.json": splits.model_dump_json().encode()})
    opened = load_ensemble(opened.source)

    whole = examine(opened, [a, b], target=tmp_path / "x", settings=SETTINGS, config=FAST)
    assert "members were trained on 4 of the 4 ordinary images" in whole.remarks[0]
    assert [row.trained_on for row in whole.images] == [1] * 4 + [0] * 3

    apart = examine(
        opened, [a, b], target=tmp_path / "y", settings=SETTINGS, config=FAST, out_of_fold=True
    )
    ordinary = [row for row in apart.images if row.group == "a"]
    assert {(row.file, row.member) for row in ordinary} == {
        (name, facts["fold"]) for name, facts in images.items()
    }
    assert len(apart.images) == 4 + 2 * 3
    assert all(row.trained_on == 0 for row in apart.images)
    u = next(row for row in apart.detection if row.score == "u")
    wins = [
        odd.scores["u"] > one.scores["u"]
        for odd in apart.images
        for one in ordinary
        if odd.group == "b" and odd.member == one.member
    ]
    assert u.auroc == pytest.approx(np.mean(wins))


def test_mistakes(ensemble: Ensemble, folders: Path, tmp_path: Path) -> None:
    a, b = group_of(folders / "a"), group_of(folders / "b", labeled=False)
    with pytest.raises(ConfigError, match="expected two or more with different names"):
        examine(ensemble, [a, a], target=tmp_path / "out", settings=SETTINGS)
    for text in ("images", "=images", "a=", "a=b,c,d,e", "a=b,"):
        with pytest.raises(ConfigError, match="expected NAME=IMAGES or NAME=IMAGES,MASKS"):
            parse_group(text, num_classes=2)
    color = tmp_path / "color"
    color.mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(color / "0.png")
    odd = parse_group(f"color={color}", num_classes=2)
    with pytest.raises(ImageMismatchError, match="has 3 channels, the ensemble expects 1"):
        examine(ensemble, [b, odd], target=tmp_path / "out", settings=SETTINGS, config=FAST)
    with pytest.raises(InputError):
        examine(
            ensemble,
            [b, parse_group("none=nowhere", num_classes=2)],
            target=tmp_path / "out",
            settings=SETTINGS,
        )
    assert not (tmp_path / "out").exists()


# -- statistics ---------------------------------------------------------------------------------


def simulated(group: str, count: int, shift: float, rng: np.random.Generator):
    """Images whose U tells quality, and whose pairwise Dice tells it better."""
    rows = []
    for number in range(count):
        hidden = rng.normal() + shift
        noisy, close = hidden + rng.normal(), hidden + 0.1 * rng.normal()
        rows.append(
            ImageEvidence(
                group=group,
                file=str(number),
                image_sha256="0" * 64,
                member=None,
                trained_on=0,
                scores={"u": noisy, "one_minus_pairwise_dice": close},
                statistics={"sharpness": rng.normal()},
                dice=float(np.clip(0.85 - 0.08 * hidden, 0, 1)),
            )
        )
    return rows


def test_better_scores_are_found_to_be_better_with_intervals() -> None:
    rng = np.random.default_rng(0)
    settings = EvidenceSettings(resamples=300)
    ordinary, odd = with_oddness(simulated("a", 60, 0, rng), simulated("b", 40, 1, rng))
    detection = {row.score: row for row in detection_rows(ordinary, odd, settings)}
    u, pairs = detection["u"], detection["one_minus_pairwise_dice"]
    assert u.low < u.auroc < u.high
    assert (u.better_than_u, u.better_low, u.better_high) == (0, 0, 0)
    assert pairs.auroc > u.auroc
    assert pairs.better_low < pairs.better_than_u == pairs.auroc - u.auroc < pairs.better_high
    assert {"looks", "ood"} <= detection.keys()

    failures = {row.score: row for row in failure_rows("all", [*ordinary, *odd], settings)}
    u, pairs = failures["u"], failures["one_minus_pairwise_dice"]
    assert pairs.aurc < u.aurc
    assert pairs.less_low > 0
    assert pairs.excess < u.excess
    assert pairs.spearman < u.spearman < 0
    dice = [row.dice for row in (*ordinary, *odd)]
    values = [row.scores["u"] for row in (*ordinary, *odd)]
    assert u.spearman == pytest.approx(stats.spearmanr(values, dice).statistic)
    assert u.failing == sum(value < 0.8 for value in dice)
    assert pairs.to_review <= u.to_review


def test_intervals_of_equal_groups_hold_one_half() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(30):
        rows = with_oddness(simulated("a", 15, 0, rng), simulated("b", 15, 0, rng))
        u = next(iter(detection_rows(*rows, EvidenceSettings(resamples=200))))
        inside += u.low <= 0.5 <= u.high
    assert inside >= 25


def test_claims_hold_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    ordinary, _ = with_oddness(simulated("a", 80, 0, rng), [])
    rows = list(coverage_rows(ordinary, EvidenceSettings(splits=20)))
    assert {row.claim for row in rows} == {
        "false alarm", "missed failure", "Dice outside its range",
    }  # fmt: skip
    for row in rows:
        assert row.found <= row.level + 0.06
        assert row.references == 40
