"""The report holds what the records hold, asks for nothing, and is not fooled by names."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import tifffile
from matplotlib.colors import to_rgb
from PIL import Image as PillowImage
from selectolax.lexbor import LexborHTMLParser, LexborNode
from skimage.segmentation import find_boundaries

from df2serve import Image, Predictor
from df2serve.artifact import Calibration, ReviewThreshold, with_files
from df2serve.artifact.manifest import FailureBound, Reference
from df2serve.config import InferenceConfig, InstanceConfig
from df2serve.core.calibration import miss_level
from df2serve.core.scores import ImageScores
from df2serve.errors import DecodeError, InputError, SourceNotFoundError
from df2serve.io import read_image
from df2serve.testing import random_ensemble
from df2serve.writers import Record, ResultFolder, RunInfo, read_results, write_report
from df2serve.writers.report._pictures import _outlines, _reduced_mask
from df2serve.writers.report._references import read_references
from df2serve.writers.report._words import Place, reasons
from df2serve_training._annotations import Annotation
from df2serve_training._evaluation_files import read_evaluation
from df2serve_training.evaluate import EvaluationSettings, PredictedImage, evaluate

NAMES = (
    "ordinary",
    "plate 1/</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onclick='alert(1)",
    "<!--",
    "]]>{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "&lt;b&gt; \u202e#?%20",
)


def references(kind: str = "held_out") -> tuple[Reference, ...]:
    """Ten images, of which the four with the largest U failed."""
    return tuple(
        Reference(
            name=f"reference {i}",
            image_sha256=f"{i:064x}",
            kind=kind,
            scores={"u": 0.05 * (i + 1), "one_minus_expected_dice": 0.04 * i},
            quality={"dice": 0.95 if i < 6 else 0.5},
        )
        for i in range(10)
    )


def calibration(config: InferenceConfig, /, **changes: Any) -> Calibration:
    threshold = ReviewThreshold(
        score="u", value=0.35, metric="dice", required=0.8, failing=4, references=10,
        kind="held_out", level=0.2,
    )  # fmt: skip
    facts = {
        "config": config.model_dump(mode="json"),
        "thresholds": (threshold,),
        "references": references(),
    }
    return Calibration(**(facts | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real predictions of images with hostile names, with objects."""
    root = tmp_path_factory.mktemp("report")
    ensemble = random_ensemble(root / "ensemble", members=2, channels=1, classes=3, tile=64)
    config = Predictor(ensemble).config
    content = calibration(config).model_dump_json().encode()
    ensemble = with_files(ensemble, {"calibration.json": content})
    rng = np.random.default_rng(3)
    with Predictor(ensemble) as predictor:
        results = ResultFolder(
            root / "out", ensemble, predictor.config, instances=InstanceConfig(min_size=5)
        )
        for index, name in enumerate(NAMES):
            pixels = rng.integers(0, 255, (60 + index, 50)).astype(np.uint8)
            image = Image.from_array(pixels, source=f"{name}.tif")
            image = replace(image, sha256=hashlib.sha256(name.encode()).hexdigest())
            results.write(predictor.stream(image))
    return root / "out"


@pytest.fixture(scope="module")
def page(folder: Path) -> LexborHTMLParser:
    return LexborHTMLParser(write_report(folder).read_text(encoding="utf-8"))


def data_of(page: LexborHTMLParser) -> dict[str, Any]:
    return json.loads(page.css_first("script#data").text())


def picture(card: LexborNode, kind: str) -> PillowImage.Image:
    _, encoded = card.css_first(f"img.{kind}").attributes["src"].split(";base64,")
    return PillowImage.open(io.BytesIO(base64.b64decode(encoded)))


# -- numbers ------------------------------------------------------------------------------------


def test_every_image_is_there_with_the_numbers_of_its_record(
    folder: Path, page: LexborHTMLParser
) -> None:
    run, records = read_results(folder)
    listed = sorted(records, key=lambda record: -record.scores.u)
    assert sorted(record.name for record in records) == sorted(NAMES)
    cards = page.css("li.card")
    assert [card.css_first("h3 bdi").text() for card in cards] == [item.name for item in listed]
    assert [card.css_first(".rank").text() for card in cards] == [
        str(rank + 1) for rank in range(len(NAMES))
    ]
    for card, entry, record in zip(cards, data_of(page)["images"], listed, strict=True):
        scores = record.scores
        assert card.css_first(".score b").text() == f"{scores.u:.3f}"
        assert ("review" in card.attributes["class"].split()) == (scores.u >= run.threshold.value)
        assert entry["u"] == scores.u
        values = {fact["title"]: fact["value"] for fact in entry["scores"]}
        assert values["1 - expected Dice"] == scores.one_minus_expected_dice
        assert values["U, epistemic part"] == scores.u_epistemic
        assert [share for _, share in entry["shares"]] == list(scores.class_fractions[1:])
        assert entry["counted"] == record.instances.kept
        assert len(entry["objects"]) == min(100, record.instances.kept)
        doubts = [float(row[3]) for row in entry["objects"]]
        assert doubts == sorted(doubts, reverse=True)
        assert entry["facts"]["sha256"] == record.provenance.source_sha256
    text = page.css_first("footer").text()
    assert run.ensemble_sha256 in text
    assert run.ensemble_name in text


def test_pictures_show_mask_image_and_uncertainty(folder: Path, page: LexborHTMLParser) -> None:
    run, records = read_results(folder)
    by_name = {record.name: record for record in records}
    colors = np.array([to_rgb(item.color) for item in run.classes]) * 255
    scale = mpl.colormaps["inferno"](np.linspace(0, 1, 4096))[:, :3] * 255
    for card in page.css("li.card")[:3]:
        record = by_name[card.css_first("h3 bdi").text()]
        mask = read_image(folder / record.files["mask"].path).data[0]
        edge = find_boundaries(mask, mode="inner") & (mask > 0)
        outline = np.asarray(picture(card, "outline").convert("RGBA"))
        assert np.array_equal(outline[..., 3] > 0, edge)
        assert np.abs(outline[edge][:, :3] - colors[mask[edge]]).max() <= 1

        with PillowImage.open(folder / record.files["image"].path) as plain:
            difference = np.abs(
                np.asarray(picture(card, "plain").convert("L"), float)
                - np.asarray(plain.convert("L"), float)
            )
        assert difference.mean() < 12

        total = read_image(folder / record.files["uncertainty"].path).data[0]
        shown = np.asarray(picture(card, "map").convert("RGB"), float)
        distances = ((shown[:, :, None] - scale[None, None, ::32]) ** 2).sum(axis=-1)
        values = distances.argmin(axis=-1) * 32 / 4095 * run.largest_uncertainty
        assert np.abs(values - total).max() < 0.03 * run.largest_uncertainty


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    """A small object of a large image keeps its outline."""
    tall = np.random.default_rng(0).integers(0, 3, (4501, 40)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "mask.tif", tall)
    assert np.array_equal(_reduced_mask(tmp_path / "mask.tif", (14, 1501)), tall[::3, ::3])
    mask = np.zeros((900, 1500), np.uint8)
    mask[400:410, 700:720] = 2
    outline = _outlines(mask, (150, 90))
    rows, columns = np.nonzero(outline == 2)
    assert (rows.min(), rows.max()) == (40, 40)
    assert (columns.min(), columns.max()) == (70, 71)


# -- safety -------------------------------------------------------------------------------------


def test_names_are_text_and_nothing_else(page: LexborHTMLParser) -> None:
    assert len(page.css("script")) == 2
    allowed = {"src", "class", "alt", "width", "height", "loading", "decoding"}
    for node in page.css("img"):
        assert set(node.attributes) <= allowed
    for node in page.css("*"):
        assert not [name for name in node.attributes if name.startswith("on") or name == "style"]
    labels = [node.attributes["aria-label"] for node in page.css("button.pictures")]
    assert sorted(labels) == sorted(f"Details of {name}" for name in NAMES)


def test_nothing_is_asked_for(page: LexborHTMLParser) -> None:
    addresses = [
        value
        for node in page.css("*")
        for name, value in node.attributes.items()
        if name in ("src", "href", "action", "srcset", "poster", "data", "xlink:href")
    ]
    assert len(addresses) == 3 * len(NAMES) + 1
    assert all(re.match(r"data:image/(webp|png);base64,|#gallery$", item) for item in addresses)
    style, script = page.css_first("style").text(), page.css("script")[1].text()
    assert not re.search(r"url\((?!#)|@import|https?:", style)
    assert re.findall(r"https?:[^\"']*", script) == ["http://www.w3.org/2000/svg"] * 2

    policy = page.css_first("meta[http-equiv]").attributes["content"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    for name, text in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"


# -- what references promise --------------------------------------------------------------------


@pytest.fixture
def run(folder: Path) -> RunInfo:
    return read_results(folder)[0]


def changed(run: RunInfo, /, **changes: Any) -> RunInfo:
    now = calibration(run.config, **changes)
    return run.model_copy(update={"calibration": now, "threshold": now.threshold("u")})


def test_levels_are_those_of_the_references(run: RunInfo, page: LexborHTMLParser) -> None:
    scores = [0.05 * (i + 1) for i in range(10)]
    qualities = [0.95] * 6 + [0.5] * 4
    expected = [
        [value, miss_level(scores, qualities, required=0.8, threshold=value)]
        for value in scores[6:]
    ]
    assert data_of(page)["levels"] == expected
    assert [level for _, level in expected] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert data_of(page)["threshold"] == 0.35
    assert [failed for _, failed in data_of(page)["references"]] == [False] * 6 + [True] * 4
    assert run.threshold.meaning[1:] in page.css_first(".promise p.fine").text()


def test_images_of_one_animal_count_as_one(run: RunInfo) -> None:
    grouped = tuple(
        item.model_copy(update={"group": str(index // 2)})
        for index, item in enumerate(references())
    )
    found = read_references(changed(run, references=grouped))
    assert [level.miss for level in found.levels] == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_out_of_fold_references_promise_nothing(run: RunInfo) -> None:
    threshold = run.threshold.model_copy(update={"kind": "out_of_fold", "level": None})
    found = read_references(
        changed(run, references=references("out_of_fold"), thresholds=(threshold,))
    )
    assert found.levels == ()
    assert len(found.points) == 10
    assert found.meaning.endswith("it guarantees nothing.")


def test_references_of_other_settings_are_left_out(run: RunInfo) -> None:
    other = run.model_copy(
        update={"calibration": Calibration(), "changed_settings": "views 1, here 4"}
    )
    found = read_references(other)
    assert (found.kind, found.points, found.levels) == (None, (), ())
    assert "(views 1, here 4)" in found.meaning


def test_without_failures_or_references(run: RunInfo) -> None:
    bound = FailureBound(metric="dice", required=0.4, references=10, groups=10, bound=0.3)
    found = read_references(changed(run, thresholds=(), failure_bound=bound))
    assert found.meaning == f"N{bound.meaning[1:]}."
    assert (found.levels, any(point.failed for point in found.points)) == ((), False)
    alone = read_references(changed(run, thresholds=()))
    assert "no reference image" in alone.meaning.lower()
    nothing = read_references(changed(run, thresholds=(), references=()))
    assert "df2serve evaluate --calibrate" in nothing.meaning
    stated = read_references(changed(run, references=()))
    assert [(level.threshold, level.miss) for level in stated.levels] == [(0.35, 0.2)]


def test_a_reference_is_not_compared_with_itself(run: RunInfo) -> None:
    found = read_references(run)
    assert found.place("u", 0.32, sha256=None) == Place(below=6, references=10)
    assert found.place("u", 0.3, sha256=f"{5:064x}") == Place(below=5, references=9)
    assert found.place("u", 9.0, sha256=None).text == "all 10"
    assert found.place("u", 0.0, sha256=None).text == "none of 10"
    assert found.place("unheard of", 1.0, sha256=None) is None


# -- reasons ------------------------------------------------------------------------------------

PLAIN = ImageScores(
    u=0.2,
    u_epistemic=0.06,
    u_class_balanced=0.2,
    one_minus_expected_dice=0.1,
    class_fractions=(0.9, 0.1),
    empty_prediction=False,
    no_valid_pixels=False,
)


@pytest.mark.parametrize(
    ("scores", "part"),
    [
        ({}, "What was found is uncertain by 0.200 on average, of at most 0.89."),
        ({}, "That is more than 3 of 10 reference images have."),
        ({"empty_prediction": True}, "Nothing was found in it; its most doubtful pixel"),
        ({"u": None, "empty_prediction": True}, "Nothing was found in it, and U is undefined"),
        ({"no_valid_pixels": True}, "No pixel of it counts"),
        ({"u_epistemic": 0.13}, "Most of it, 65%, is disagreement of members and views"),
        ({"u_epistemic": 0.01}, "Members and views agree with each other (5% is disagreement)"),
        ({"u_class_balanced": 0.3}, "A class with few pixels is more doubtful"),
        ({"one_minus_expected_dice": 0.4}, "The probabilities promise a Dice score of 0.60 only."),
        ({"class_fractions": (0.999, 0.001)}, "Very little was found: 0.10% of the pixels."),
    ],
)
def test_reasons(folder: Path, scores: dict[str, Any], part: str) -> None:
    run, records = read_results(folder)
    record = records[0].model_copy(
        update={"scores": replace(PLAIN, **scores), "notes": ("pixels are large",)}
    )
    found = list(reasons(record, run, Place(below=3, references=10)))
    assert any(sentence.startswith(part) for sentence in found)
    said = {"Pixels are large."} if record.scores.u and not record.scores.no_valid_pixels else set()
    assert said <= set(found)
    if not scores:
        assert len(found) == 3


# -- evaluations and mistakes -------------------------------------------------------------------


def predicted(records: list[Record], folder: Path) -> Iterator[PredictedImage]:
    """Predictions beside truths and experts that differ from them by a shift."""
    for shift, record in enumerate(records[:4]):
        mask = np.asarray(read_image(folder / record.files["mask"].path).data[0])
        yield PredictedImage(
            name=f"image {shift}",
            image_sha256=record.provenance.source_sha256,
            kind="held_out",
            truth=Annotation.of_classes(np.roll(mask, shift, axis=1)),
            prediction=Annotation.of_classes(mask),
            scores=record.scores,
            members=(0, 1),
            seconds=1.0,
            experts={
                name: Annotation.of_classes(np.roll(mask, far, axis=1))
                for name, far in (("near", 2), ("far", 4))
            },
        )


def test_an_evaluation_adds_quality_and_experts(folder: Path, tmp_path: Path) -> None:
    run, records = read_results(folder)
    names = [item.name for item in run.classes]
    found = evaluate(predicted(records, folder), class_names=names, settings=EvaluationSettings())
    found = found.model_copy(update={"ensemble_id": run.ensemble_id})
    (tmp_path / "evaluation.json").write_text(found.model_dump_json(), encoding="utf-8")
    assert read_evaluation(tmp_path) == found

    target = write_report(folder, target=tmp_path / "page.html", evaluation=tmp_path)
    page = LexborHTMLParser(target.read_text(encoding="utf-8"))
    data = data_of(page)
    assert data["beside"] is False
    quality = {
        entry["facts"]["sha256"]: entry["quality"] for entry in data["images"] if entry["quality"]
    }
    spans = {row.file: row for row in found.relative
             if (row.metric, row.reference) == ("dice", "estimate")}  # fmt: skip
    assert quality == {
        row.image_sha256: {
            "dice": row.dice, "worst": spans[row.file].worst, "best": spans[row.file].best,
        }
        for row in found.images
    }  # fmt: skip
    assert len(page.css(".spans g")) == 4
    ranges = [row for row in found.expert_ranges if row.metric in ("dice", "map")]
    rows = page.css(".ranges tbody tr")
    assert len(rows) == len(ranges) > 0
    assert f"{100 * ranges[0].in_range:.0f}% within" in rows[0].text()

    other = found.model_copy(update={"ensemble_id": "another"})
    (tmp_path / "evaluation.json").write_text(other.model_dump_json(), encoding="utf-8")
    with pytest.raises(InputError, match="evaluates the ensemble another, the results are of"):
        write_report(folder, target=target, evaluation=tmp_path)
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(DecodeError, match=r"evaluation\.json"):
        write_report(folder, target=target, evaluation=tmp_path)


def test_a_missing_picture_leaves_the_earlier_report(folder: Path) -> None:
    _, records = read_results(folder)
    path = folder / records[2].files["image"].path
    content, before = path.read_bytes(), write_report(folder).read_bytes()
    path.unlink()
    with pytest.raises(SourceNotFoundError, match=r"cannot read .*--resume' makes"):
        write_report(folder)
    path.write_bytes(content)
    assert (folder / "report.html").read_bytes() == before
    assert not list(folder.glob(".*"))
