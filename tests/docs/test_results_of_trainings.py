"""What the pages on trained ensembles say is what their tables hold."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import wilcoxon

from df2serve.core.calibration import failure_threshold

ROOT = Path(__file__).parents[2]
CFOS = ROOT / "docs/results/cfos"
PAGE = (ROOT / "docs/results/cfos.md").read_text(encoding="utf-8")


def images_of(run: str) -> pd.DataFrame:
    """The images of a run by name."""
    return pd.read_csv(CFOS / run / "images.csv", dtype={"file": str}).set_index("file")


def short(value: float, digits: int = 3) -> str:
    """A number below 1 as texts have it, without its zero."""
    return f"{value:.{digits}f}".replace("0.", ".", 1)


@pytest.mark.parametrize(
    ("run", "title"),
    [
        ("default", "default"),
        ("training-normalization", "normalized by the training set"),
        ("random", "random weights, normalized by the training set"),
    ],
)
def test_the_table_of_cfos(run: str, title: str) -> None:
    summary = pd.read_csv(CFOS / run / "summary.csv").set_index(["class_name", "metric"])
    assert images_of(run).dice.mean() == pytest.approx(summary.loc[("mean", "dice"), "mean"])
    (row,) = re.findall(rf"^\| {title} \|(.*)\|$", PAGE, re.MULTILINE)
    expected = [
        "{mean:.3f} ({low:.3f} to {high:.3f})".format(**summary.loc["mean", metric])
        for metric in ("dice", "map", "ap50")
    ]
    ranges = pd.read_csv(CFOS / run / "expert_ranges.csv").set_index(["metric", "reference"])
    for place in ("in_range", "above_best"):
        expected.append(f"{ranges.loc[('dice', 'estimate'), place]:.0%}".replace("%", " %"))
    assert [cell.strip() for cell in row.split("|")] == expected


def test_comparisons_of_runs() -> None:
    default, training, random = map(images_of, ("default", "training-normalization", "random"))
    assert set(default.index) == set(training.index) == set(random.index)
    path = CFOS / "deepflash2/out_of_fold.csv"
    theirs = pd.read_csv(path, dtype={"name": str}).set_index("name").dice[default.index]
    page = " ".join(PAGE.split())
    assert f"| `deepflash2` | {theirs.mean():.3f} |" in PAGE
    better = (default.dice > theirs).sum()
    p = wilcoxon(default.dice, theirs).pvalue
    assert f"in {better} of the 36 images (Wilcoxon p = {short(p, 4)})" in page
    before = training.dice[default.index]
    assert (before > theirs).sum() == (theirs > before).sum() == 18
    assert f"better in 18 images (p = {short(wilcoxon(before, theirs).pvalue, 2)})" in page
    gain = before - random.dice[default.index]
    assert (gain > 0).all()
    assert f"Pretrained weights are worth {short(gain.mean())}" in page
    gain = default.dice - before
    p = wilcoxon(default.dice, before).pvalue
    assert f"better in {(gain > 0).sum()} of the 36 images (Wilcoxon p = {short(p, 4)})" in page
    home = default.group.isin(["animal_2", "animal_6"])
    assert f"by {short(gain[~home].mean())} on average where" in page
    folds = default.members.astype(int)
    choices = [gain[folds != fold].mean() for fold in range(5)]
    assert f"by {short(min(choices))} to {short(max(choices))} of the Dice score" in page


def test_the_experts() -> None:
    images = images_of("default")
    ranges = pd.read_csv(CFOS / "default/expert_ranges.csv").set_index(["metric", "reference"])
    row = ranges.loc[("dice", "estimate")]
    within, above = (round(36 * row[place]) for place in ("in_range", "above_best"))
    assert (within + above, row.below_worst) == (len(images), 0)
    assert f"{within} of 36 images lie between the worst and the best expert, {above} abo" in PAGE
    above = ranges.loc[("dice", "leave_one_out"), "above_best"]
    assert f"in {above:.0%}".replace("%", " %") in PAGE


def test_the_numbers_of_single_images() -> None:
    images, before = images_of("default"), images_of("training-normalization")
    page = " ".join(PAGE.split())
    home = images.group.isin(["animal_2", "animal_6"])
    told = f"{short(images.dice[home].mean())} there, {short(images.dice[~home].mean())} elsewhere"
    assert told in page
    worst = images.dice.sort_values()
    told = f"{short(worst.median())}, the worst one {short(worst.iloc[0])} ({worst.index[0]})"
    assert told in page
    assert f"the four worst ones ({', '.join(worst.index[:4])}) and 0067" in page
    assert set(images.u.sort_values().index[-5:]) == {*worst.index[:4], "0067"}
    dark = images["statistics.background level of cFOS"]
    assert f"a background {dark['0067'] / dark.median():.1f} times as bright" in page
    old, new = before.loc["0067"], images.loc["0067"]
    assert f"they find {old.n_predicted} objects where the experts drew {old.n_truth}" in page
    assert f"a Dice of {short(old.dice)}" in page
    assert f"find {new.n_predicted}, and reach {short(new.dice)}" in page
    for metric in ("dice", "map"):
        for method in ("pearson", "spearman"):
            value = images.u.corr(images[metric], method=method)
            assert f"-{short(abs(value), 2)}" in page


def test_the_numbers_of_normalization() -> None:
    """Both ways for all images, for the animals from the home cage, and for the others."""
    images = pd.read_csv(CFOS / "normalization.csv", dtype={"file": str}).set_index("file")
    assert len(images) == 36
    home = images.group.isin(["animal_2", "animal_6"])
    page = " ".join(PAGE.split())
    for rows, template in (
        (images, "reach {image} in place of {training} (one view;"),
        (images.loc[["0067"]], "{image} in place of {training} in image 0067"),
        (images.loc[["0068"]], "{image} in place of {training} in 0068"),
        (images[home], "{image} in place of {training} in the animals from the home cage"),
        (images[~home], "change from {training} to {image} on average"),
    ):
        means = {way: f"{rows[f'dice_{way}'].mean():.3f}"[1:] for way in ("image", "training")}
        assert template.format(**means) in page
    loss = images.dice_training - images.dice_image
    assert "largest loss is " + f"{loss.max():.3f}"[1:] + f" ({loss.idxmax()})" in page


def test_rankings_of_cfos() -> None:
    page = (ROOT / "docs/results/ranking.md").read_text(encoding="utf-8")
    text = " ".join(page.split("## cFOS")[1].split())
    folder = ROOT / "docs/results/ranking/cfos-out-of-fold"
    evidence = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    found = {(row["score"], row["group"]): row["auroc"] for row in evidence["detection"]}
    ood = sorted(found["ood", group] for score, group in found if score == "ood")
    assert len(ood) == 8
    assert f"AUROC of {short(ood[0])} or more, and seven of them with {short(ood[1])}" in text
    for group, words in (
        ("particles", "particles ({}, so that"),
        ("dsb", "another staining ({})"),
        ("vessels", "vessels ({} both)"),
        ("saturation", "vessels ({} both)"),
    ):
        assert words.format(short(found["u", group])) in text
    failures = {(row["score"], row["group"]): row for row in evidence["failures"]}
    for group, words in (
        ("cfos", "rho -{} among"),
        ("fold", "-{} with folds"),
        ("dsb", "-{} for nuclei"),
        ("inns1", "-{} in `inns1`"),
    ):
        assert words.format(short(-failures["u", group]["spearman"], 2)) in text
    areas = {score: row["aurc"] for (score, group), row in failures.items() if group == "all"}
    assert min(areas, key=areas.get) in ("u", "u_class_balanced")
    assert f"lowest area ({short(areas['u'])}), and `ood` is no substitute" in text
    assert f"({short(areas['ood'])}): an odd image" in text
    groups = {row["group"]: row for row in evidence["groups"]}
    assert f"(mean Dice {short(groups['vessels']['mean_dice'])})" in text
    errors = {name: row["calibration_error"] for name, row in groups.items()}
    usual = errors.pop("cfos")
    told = f"{short(usual)} for ordinary images, and {short(min(errors.values()))} to "
    assert told + short(max(errors.values())) in text


def test_failures_and_claims_on_nuclei() -> None:
    page = (ROOT / "docs/results/ranking.md").read_text(encoding="utf-8")
    text = " ".join(page.split("## Nuclei")[1].split())
    folder = ROOT / "docs/results/ranking"
    evidence = json.loads((folder / "nuclei/evidence.json").read_text(encoding="utf-8"))
    rows = {row["score"]: row for row in evidence["failures"] if row["group"] == "all"}
    better = {score for score, row in rows.items() if row["less_low"] > 0}
    assert better == set(re.findall(r"`(\w+)` \(", text.split("are better than U")[0])) | {
        "one_minus_pairwise_dice"
    }
    for score in (*better, "u_epistemic"):
        assert re.search(rf"`{score}` \((AURC )?{short(rows[score]['aurc'])}\)", text)
    assert f"than U ({short(rows['u']['aurc'])}) beyond chance" in text
    gain = rows["u"]["aurc"] - rows["one_minus_pairwise_dice"]["aurc"]
    assert f"by {short(gain)} of the area" in text
    claims = {(row["claim"], row["score"]): row for row in evidence["coverage"]}
    alarm, missed, outside = (
        claims[claim, score]
        for claim, score in (
            ("false alarm", "ood"),
            ("missed failure", "u"),
            ("Dice outside its range", "u"),
        )
    )
    assert f"held: {100 * alarm['found']:.1f} % false alarms" in text
    told = f"{100 * missed['found']:.1f} % of the failures below the threshold of U where "
    assert f"{told}{100 * missed['level']:.1f} % are stated" in text
    assert f"{100 * outside['found']:.1f} % of the Dice scores" in text


def test_claims_break_under_shift() -> None:
    page = (ROOT / "docs/results/ranking.md").read_text(encoding="utf-8")
    path = ROOT / "docs/results/ranking/cfos-out-of-fold/evidence.json"
    images = json.loads(path.read_text(encoding="utf-8"))["images"]
    references = [image for image in images if image["group"] == "cfos"]
    quality = [image["dice"] for image in references]
    values = [image["scores"]["u"] for image in references]
    found = failure_threshold(values, quality, required=0.8, miss_level=0.1)
    assert f"stated to miss {100 * found.level:.1f} % of the" in page
    cells = []
    for group in ("inns1", "wue2", "dsb", "blur", "fold", "particles", "saturation", "vessels"):
        failing = [
            image["scores"]["u"]
            for image in images
            if image["group"] == group and image["dice"] < 0.8
        ]
        cells.append(f"{sum(u < found.value for u in failing)} of {len(failing)}")
    assert f"| {' | '.join(cells)} |" in page
    values = [image["scores"]["ood"] for image in references]
    found = failure_threshold(values, quality, required=0.8, miss_level=0.1)
    assert all(image["scores"]["ood"] >= found.value for image in images[len(references) :])
    selected = sum(value >= found.value for value in values)
    assert f"and {selected} of the {len(references)} of cFOS" in page
