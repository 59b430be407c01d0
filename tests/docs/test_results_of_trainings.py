"""What the pages on trained ensembles say is what their tables hold."""

import re
from pathlib import Path

import pandas as pd
from scipy.stats import wilcoxon

ROOT = Path(__file__).parents[2]
CFOS = ROOT / "docs/results/cfos"
PAGE = (ROOT / "docs/results/cfos.md").read_text(encoding="utf-8")


def test_the_table_of_cfos() -> None:
    summary = pd.read_csv(CFOS / "default/summary.csv").set_index(["class_name", "metric"])
    (row,) = re.findall(r"^\| default \|(.*)\|$", PAGE, re.MULTILINE)
    told = [cell.strip() for cell in row.split("|")]
    expected = [
        "{mean:.3f} ({low:.3f} to {high:.3f})".format(**summary.loc["mean", metric])
        for metric in ("dice", "map", "ap50")
    ]
    ranges = pd.read_csv(CFOS / "default/expert_ranges.csv").set_index(["metric", "reference"])
    expected.append(f"{ranges.loc[('dice', 'estimate'), 'in_range']:.0%}".replace("%", " %"))
    assert told == expected
    above = ranges.loc[("dice", "leave_one_out"), "above_best"]
    assert f"in {above:.0%}".replace("%", " %") in PAGE


def test_the_recipe_of_the_original() -> None:
    tables = (CFOS / "default/images.csv", CFOS / "deepflash2/out_of_fold.csv")
    ours, theirs = (
        pd.read_csv(path, dtype={name: str}).set_index(name).dice.sort_index()
        for path, name in zip(tables, ("file", "name"), strict=True)
    )
    assert f"| `deepflash2` | {theirs.mean():.3f} |" in PAGE
    assert f"better in {(ours > theirs).sum()} of the {len(ours)} images" in PAGE
    assert (ours > theirs).sum() == (theirs > ours).sum()
    p = wilcoxon(ours, theirs).pvalue
    assert f"(Wilcoxon p = {p:.2f})".replace("0.", ".") in PAGE


def test_the_numbers_of_single_images() -> None:
    images = pd.read_csv(CFOS / "default/images.csv", dtype={"file": str}).set_index("file")
    assert len(images) == 36
    assert images.dice.mean() == pd.read_csv(CFOS / "default/summary.csv")["mean"][0]
    worst = images.loc["0067"]
    assert f"Dice .{worst.dice:.3f}".replace(".0.", ".") in PAGE
    assert f"{worst.n_predicted} objects are found" in PAGE
    assert f"drew {worst.n_truth}" in " ".join(PAGE.split())
    first, second = images.u.sort_values(ascending=False).index[:2]
    assert (first, second) == ("0067", "0068")
    for name in (first, second):
        assert f"({images.u[name]:.3f})".replace("0.", ".") in PAGE
    assert f"all images is {images.dice.median():.3f}".replace("0.", ".") in PAGE
    home = images.dice[images.group.isin(["animal_2", "animal_6"])].mean()
    assert f"{home:.3f} in those from the home cage".replace("0.", ".") in " ".join(PAGE.split())
    for metric in ("dice", "map"):
        for method in ("pearson", "spearman"):
            value = images.u.corr(images[metric], method=method)
            assert f"-{abs(value):.2f}".replace("0.", ".") in PAGE


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
