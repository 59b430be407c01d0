"""A folder of experts to a folder of ground truth: files, tables, warnings, and what goes wrong."""

import json
import shutil
from functools import cache

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from df2serve.errors import (
    CancelledError,
    ConfigError,
    InputError,
    OutputError,
    SourceNotFoundError,
)
from df2serve.io import read_image, read_mask
from df2serve.testing import CellScene, generate_cells, simulate_experts
from df2serve_training.ground_truth import (
    Annotation,
    GroundTruthReport,
    GroundTruthSettings,
    estimate,
    estimate_folder,
    majority_vote,
    staple,
)

STAPLE = GroundTruthSettings()
MAJORITY = GroundTruthSettings(method="majority")
EXPERTS = ("e1", "e2", "e10")
SCORES = ("dice_score", "mean_average_precision", "average_precision_at_iou_50")


def save(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, mask)
    else:
        Image.fromarray(np.asarray(mask, np.uint8)).save(path)


@cache
def cells(seed, *, classes="one"):
    sample = generate_cells(CellScene(shape=(96, 112), n_cells=10, classes=classes), seed)
    return list(simulate_experts(sample, seed).values())


@pytest.fixture
def experts(tmp_path):
    """Three experts, three images; the third expert lacks one, the first saves TIFF files."""
    root = tmp_path / "experts"
    for name, seed in (("a2", 0), ("a10", 1), ("b", 2)):
        for expert, mask in zip(EXPERTS, cells(seed), strict=False):
            if (name, expert) != ("b", "e10"):
                suffix = ".tif" if expert == "e1" else ".png"
                save(root / expert / f"{name}{suffix}", mask * 255)
    (root / ".cache").mkdir()
    (root / "notes.txt").write_text("not a mask")
    return root


def masks_of(root, name):
    files = [next((root / expert).glob(f"{name}.*"), None) for expert in EXPERTS]
    return [read_mask(file, kind="binary").classes for file in files if file]


def listing(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


@pytest.mark.parametrize("method", ["staple", "majority", "instance"])
def test_files_hold_what_was_estimated(experts, tmp_path, method):
    settings = GroundTruthSettings(method=method)
    report = estimate_folder(experts, tmp_path / "gt", settings=settings)
    assert report.experts == EXPERTS
    assert [image.file for image in report.images] == ["a2", "a10", "b"]
    layers = {"staple": ["posteriors"], "majority": [], "instance": ["labels"]}[method]
    tables = ["agreement.csv", "agreement.xlsx", "experts.csv", "warnings.csv", "report.json"]
    tables += ["objects.csv"] if method == "instance" else []
    files = [f"masks/{name}.png" for name in ("a2", "a10", "b")]
    files += [f"{layer}/{name}.tif" for layer in ("votes", *layers) for name in ("a2", "a10", "b")]
    assert listing(tmp_path / "gt") == sorted(files + tables)
    for image in report.images:
        masks = masks_of(experts, image.file)
        found = estimate([Annotation.of_classes(mask) for mask in masks], settings)
        mask = read_mask(tmp_path / "gt/masks" / f"{image.file}.png", kind="binary").classes
        np.testing.assert_array_equal(mask, found.fusion.classes)
        votes = read_image(tmp_path / "gt/votes" / f"{image.file}.tif").data
        assert votes.dtype == np.float32
        np.testing.assert_array_equal(votes, found.fusion.votes[1:])
        np.testing.assert_allclose(votes[0], np.mean(masks, axis=0), atol=1e-6)
        if method == "staple":
            posterior = read_image(tmp_path / "gt/posteriors" / f"{image.file}.tif").data
            np.testing.assert_array_equal(posterior, found.fusion.posterior[1:])
            np.testing.assert_array_equal(posterior[0] > 0.5, mask)
        if method == "instance":
            labels = read_mask(tmp_path / "gt/labels" / f"{image.file}.tif", kind="instances")
            np.testing.assert_array_equal(labels.labels, found.annotation.labels)
        assert image.foreground == pytest.approx(mask.mean())
        assert image.shape == mask.shape
        assert len(image.confusion) == len(image.sources) == len(masks)


def test_report_and_tables_say_the_same(experts, tmp_path):
    report = estimate_folder(experts, tmp_path / "gt", settings=STAPLE)
    text = (tmp_path / "gt/report.json").read_text()
    assert GroundTruthReport.model_validate_json(text) == report
    assert "NaN" not in text
    frame = pd.read_csv(tmp_path / "gt/agreement.csv", dtype={"file": str})
    titles = ["method", "file", "expert", *SCORES, *(f"loo_{title}" for title in SCORES), "remarks"]
    assert list(frame.columns) == titles
    assert len(frame) == 8
    for row, listed in zip(report.agreement, frame.itertuples(), strict=True):
        assert (listed.method, listed.file, listed.expert) == ("staple", row.file, row.expert)
        assert listed.dice_score == row.dice_score
        assert listed.loo_mean_average_precision == row.loo_mean_average_precision
    summary = pd.read_csv(tmp_path / "gt/experts.csv").set_index("expert")
    assert summary.n_files.to_dict() == {"e1": 3, "e2": 3, "e10": 2}
    for title in SCORES:
        means = frame.groupby("expert")[title].mean()
        pd.testing.assert_series_equal(summary[title].sort_index(), means)
    sheets = pd.read_excel(tmp_path / "gt/agreement.xlsx", sheet_name=None)
    assert list(sheets) == ["agreement", "experts", "warnings"]
    np.testing.assert_array_equal(sheets["agreement"].dice_score, frame.dice_score)


def test_leave_one_out_leaves_the_expert_out(experts, tmp_path):
    report = estimate_folder(experts, tmp_path / "gt", settings=STAPLE)
    for row in report.agreement:
        paths = {expert: next((experts / expert).glob(f"{row.file}.*"), None) for expert in EXPERTS}
        masks = {
            expert: read_mask(path, kind="binary").classes for expert, path in paths.items() if path
        }
        own = masks.pop(row.expert)
        rest = staple(list(masks.values()), n_classes=2, max_iterations=100).classes
        assert row.loo_dice_score == pytest.approx(
            2 * (own & rest).sum() / (own.sum() + rest.sum())
        )


def test_several_classes(tmp_path):
    for expert, mask in enumerate(cells(0, classes="brightness")[:4]):
        save(tmp_path / f"experts/e{expert}/0.png", mask)
    for method in ("staple", "majority", "instance"):
        settings = GroundTruthSettings(method=method, masks="classes", num_classes=3)
        report = estimate_folder(tmp_path / "experts", tmp_path / method, settings=settings)
        mask = read_mask(tmp_path / method / "masks/0.png", kind="classes", num_classes=3).classes
        assert np.unique(mask).tolist() == [0, 1, 2]
        votes = read_image(tmp_path / method / "votes/0.tif")
        assert votes.axes == "CYX"
        np.testing.assert_allclose(votes.data.sum(axis=0), 1, atol=1e-6)
        assert np.shape(report.images[0].confusion["e0"]) == (3, 3)
        assert all(row.loo_dice_score > 0.3 for row in report.agreement)


def test_masks_of_instances(tmp_path):
    sample = generate_cells(CellScene(shape=(96, 96), n_cells=9, touching=0.6), 3)
    for expert in ("a", "b", "c"):
        save(tmp_path / "experts" / expert / "x.tif", sample.labels * 1000)
    settings = GroundTruthSettings(method="instance", masks="instances")
    report = estimate_folder(tmp_path / "experts", tmp_path / "gt", settings=settings)
    (image,) = report.images
    assert image.n_objects == 9
    assert image.n_merged > 0
    assert all(row.mean_average_precision == 1 for row in report.agreement)
    objects = pd.read_csv(tmp_path / "gt/objects.csv")
    assert objects.votes.tolist() == [3] * 9
    assert objects.area_px.sum() == np.count_nonzero(sample.labels)
    pixels = estimate_folder(
        tmp_path / "experts",
        tmp_path / "pixels",
        settings=settings.updated(method="staple"),
    )
    assert pixels.images[0].n_objects == 9 - image.n_merged
    assert pixels.agreement[0].mean_average_precision < 1


# -- warnings -----------------------------------------------------------------------------------


def kinds(report, file=None):
    return {(w.kind, w.expert) for w in report.warnings if file in (None, w.file)}


def test_few_experts_and_empty_masks_are_named(experts, tmp_path):
    for expert in EXPERTS:
        save(experts / expert / "nothing.png", np.zeros((20, 30)))
    report = estimate_folder(experts, tmp_path / "gt", settings=STAPLE)
    assert kinds(report, "b") == {("few_experts", None)}
    empty = {("empty_mask", expert) for expert in EXPERTS}
    assert kinds(report, "nothing") == empty | {("empty_estimate", None)}
    rows = [row for row in report.agreement if row.file == "nothing"]
    assert [row.dice_score for row in rows] == [row.loo_dice_score for row in rows] == [None] * 3
    assert {row.remarks for row in rows} == {"empty_mask"}
    table = pd.read_csv(tmp_path / "gt/warnings.csv", keep_default_na=False)
    assert len(table) == len(report.warnings)
    assert {"file", "expert", "kind", "message"} == set(table.columns)


def test_an_expert_alone_is_the_estimate(experts, tmp_path):
    save(experts / "e1/alone.png", cells(5)[0] * 255)
    report = estimate_folder(experts, tmp_path / "gt", settings=STAPLE)
    (row,) = [row for row in report.agreement if row.file == "alone"]
    assert (row.dice_score, row.loo_dice_score) == (1, None)
    assert ("few_experts", None) in kinds(report, "alone")


def test_inflated_area_and_missing_convergence_are_named(tmp_path):
    rng = np.random.default_rng(0)
    for expert in range(5):
        save(tmp_path / f"experts/e{expert}/noise.png", (rng.random((64, 64)) < 0.2) * 255)
        dots = np.zeros((64, 64))
        dots[8 * expert : 8 * expert + 12, 5:50] = 255  # neighbors of two agree, three never do
        save(tmp_path / f"experts/e{expert}/dots.png", dots)
    settings = GroundTruthSettings(max_iterations=15, low_agreement=0)
    report = estimate_folder(tmp_path / "experts", tmp_path / "gt", settings=settings)
    assert ("not_converged", None) in kinds(report, "noise")
    assert ("inflated_area", None) in kinds(report, "dots")
    by_name = {image.file: image for image in report.images}
    assert (by_name["noise"].iterations, by_name["noise"].converged) == (15, False)
    majority = majority_vote(
        [read_mask(path, kind="binary").classes for path in (tmp_path).glob("experts/*/dots.png")],
        n_classes=2,
    )
    assert by_name["dots"].area_ratio is None
    assert not majority.classes.any()


def test_masks_of_another_image_are_found(tmp_path):
    names, root = ("one", "two", "three"), tmp_path / "experts"
    for seed, name in enumerate(names):
        for expert, mask in zip("abcde", cells(seed), strict=True):
            save(root / expert / f"{name}.png", mask * 255)
    shutil.copy(root / "d/two.png", root / "d/three.png")  # saved twice
    lazy = np.zeros((96, 112))
    lazy[:30, :30] = 255
    save(root / "e/one.png", lazy)
    report = estimate_folder(root, tmp_path / "gt", settings=STAPLE)
    found = {(w.file, w.expert): w for w in report.warnings if w.expert}
    assert set(found) == {("three", "d"), ("one", "e")}
    assert found["three", "d"].kind == "looks_like_other"
    assert "1.000 with the mask of d of image two" in found["three", "d"].message
    assert found["one", "e"].kind == "low_agreement"
    remarks = {(row.file, row.expert): row.remarks for row in report.agreement if row.remarks}
    assert remarks == {("three", "d"): "looks_like_other", ("one", "e"): "low_agreement"}


def test_swapped_masks_fit_the_estimates_of_each_other(tmp_path):
    root = tmp_path / "experts"
    for seed, name in enumerate(("one", "two")):
        for expert, mask in zip("abcde", cells(seed), strict=True):
            save(root / expert / f"{name}.png", mask * 255)
    (root / "b/one.png").rename(root / "b/x")
    (root / "b/two.png").rename(root / "b/one.png")
    (root / "b/x").rename(root / "b/two.png")
    report = estimate_folder(root, tmp_path / "gt", settings=STAPLE)
    found = {w.file: w.message for w in report.warnings if w.kind == "looks_like_other"}
    assert set(found) == {"one", "two"}
    assert "with the estimate of image two" in found["one"]


@pytest.mark.slow
def test_published_scores_and_a_real_mix_up(shared_data, golden, tmp_path):
    names = ("0001", "0004", "0144", "0150")
    for number in range(1, 6):
        folder = tmp_path / f"experts/expert_{number}"
        folder.mkdir(parents=True)
        for name in names:
            source = shared_data / f"cfos_hc/masks_experts/expert_{number}/{name}.png"
            shutil.copy(source, folder)
    report = estimate_folder(tmp_path / "experts", tmp_path / "gt", settings=STAPLE)
    table = pd.read_csv(tmp_path / "gt/agreement.csv", dtype={"file": str})
    published = json.loads((golden / "deepflash2.json").read_text())["gt_metrics_published"]
    for name in names[:2]:
        rows = table[table.file == name]
        for theirs, ours in zip(("dice", "mAP", "AP50"), SCORES, strict=True):
            np.testing.assert_allclose(rows[ours], published[name]["STAPLE"][theirs], atol=5e-7)
    remarks = {(row.file, row.expert): row.remarks for row in report.agreement if row.remarks}
    assert remarks == {
        ("0144", "expert_1"): "low_agreement",
        ("0150", "expert_1"): "low_agreement",
        ("0150", "expert_4"): "looks_like_other",
    }
    (found,) = [w for w in report.warnings if w.kind == "looks_like_other"]
    assert "0.609 with the mask of expert_4 of image 0144" in found.message
    assert all(w.kind == "inflated_area" for w in report.warnings if not w.expert)


# -- what goes wrong ----------------------------------------------------------------------------


def test_everything_wrong_is_told_at_once(experts, tmp_path):
    save(experts / "e2/a2.png", np.zeros((9, 9)))
    (experts / "e2/b.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    save(experts / "e10/a10.png", np.arange(96 * 112).reshape(96, 112) % 7)
    save(experts / "e10/a2.tif", np.zeros((96, 112), np.uint8))
    save(experts / "e1/A10.png", np.zeros((96, 112)))
    (experts / "e3").mkdir()
    with pytest.raises(InputError) as caught:
        estimate_folder(experts, tmp_path / "gt", settings=STAPLE)
    lines = str(caught.value).splitlines()
    for expected in (
        r"e3 holds no masks; fill or remove the folder",
        r"e10 holds a2.png and a2.tif for one image; keep one of them",
        r"A10 and a10 differ in upper and lower case alone",
        r"a2 has masks of several sizes (rows x columns): e1 96 x 112, e2 9 x 9, e10 96 x 112",
        r"e2/b.png: b.png ",
        r"e10/a10.png: a10.png holds 6 values besides 0",
    ):
        assert sum(expected in line for line in lines) == 1, expected
    assert len(lines) == 7
    assert not (tmp_path / "gt").exists()


@pytest.mark.parametrize("kind", ["missing", "empty", "files", "file"])
def test_a_folder_without_experts_is_told(tmp_path, kind):
    root = tmp_path / "experts"
    if kind == "file":
        root.write_text("")
    elif kind != "missing":
        root.mkdir()
    if kind == "files":
        save(root / "1.png", np.zeros((3, 3)))
    expected = "holds no folders; expected masks as EXPERT/FILE"
    with pytest.raises(
        SourceNotFoundError, match=expected if kind in ("empty", "files") else "is no folder"
    ):
        estimate_folder(root, tmp_path / "gt", settings=STAPLE)


def test_experts_need_an_image_in_common(tmp_path):
    save(tmp_path / "experts/a/1.png", np.zeros((3, 3)))
    save(tmp_path / "experts/b/2.png", np.zeros((3, 3)))
    with pytest.raises(InputError, match="no image has masks of two experts"):
        estimate_folder(tmp_path / "experts", tmp_path / "gt", settings=STAPLE)


def test_results_that_exist_are_not_touched(experts, tmp_path):
    target = tmp_path / "gt"
    save(target / "mine.png", np.ones((2, 2)))
    before = (target / "mine.png").read_bytes()
    with pytest.raises(OutputError, match="exists; remove it or choose another folder"):
        estimate_folder(experts, target, settings=STAPLE)
    assert listing(target) == ["mine.png"]
    assert (target / "mine.png").read_bytes() == before
    with pytest.raises(ConfigError, match="where folders are experts"):
        estimate_folder(experts, experts / "gt", settings=STAPLE)
    (tmp_path / "empty").mkdir()
    estimate_folder(experts, tmp_path / "empty", settings=MAJORITY)
    assert (tmp_path / "empty/report.json").is_file()


def test_nothing_is_left_of_what_is_stopped(experts, tmp_path):
    seen = []

    def stop(progress):
        seen.append((progress.source, progress.done, progress.total))
        if progress.done == 2:
            raise CancelledError

    with pytest.raises(CancelledError):
        estimate_folder(experts, tmp_path / "gt", settings=MAJORITY, listener=stop)
    assert seen == [("a2", 1, 3), ("a10", 2, 3)]
    assert [path.name for path in tmp_path.iterdir()] == ["experts"]


def test_a_target_that_cannot_be_written_is_told(experts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*gt: (Not a directory|File exists)"):
        estimate_folder(experts, tmp_path / "file/gt", settings=MAJORITY)


def test_names_that_look_like_formulas_stay_text(tmp_path):
    for expert in ("=1+1", "b", "c"):
        save(tmp_path / "experts" / expert / "x.png", cells(0)[0] * 255)
    estimate_folder(tmp_path / "experts", tmp_path / "gt", settings=MAJORITY)
    sheet = pd.read_excel(tmp_path / "gt/agreement.xlsx", sheet_name="agreement")
    assert sheet.expert.tolist() == ["=1+1", "b", "c"]


def test_settings_fit_each_other():
    with pytest.raises(ConfigError, match="use masks = 'classes' for more"):
        STAPLE.updated(num_classes=3)
    with pytest.raises(ConfigError, match="method"):
        STAPLE.updated(method="vote")
    assert STAPLE.updated(masks="classes", num_classes=3).num_classes == 3
