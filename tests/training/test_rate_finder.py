"""The trial of learning rates."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image as PillowImage

from df2serve.cli import main
from df2serve.core.normalize import fit_training_normalization
from df2serve.errors import ConfigError, OutputError
from df2serve.testing import CellScene, generate_cells
from df2serve_training.dataset import IntensityRange, LabeledImage
from df2serve_training.fit import MemberFit
from df2serve_training.rate_finder import (
    RateCurve,
    RatePoint,
    RateSettings,
    sweep,
    write_curve,
)
from df2serve_training.recipe import Recipe

SETTINGS = RateSettings(start=1e-5, end=1e6, steps=24, smoothing=0.9)
RECIPE = Recipe.model_validate(
    {
        "folds": {"count": 2},
        "network": {
            "encoder": "tu-test_resnet",
            "weights": "random",
            "options": {"encoder_depth": 4, "decoder_channels": [32, 16, 8, 8]},
        },
        "sampling": {"patch_shape": [64, 64]},
        "training": {"batch_size": 2, "phases": [{"share": 1, "rate": 1e-3}]},
    }
)


def small_fit() -> MemberFit:
    samples = [generate_cells(CellScene(shape=(96, 96), n_cells=5), seed) for seed in range(3)]
    return MemberFit(
        recipe=RECIPE,
        member=0,
        images=[LabeledImage(sample.image, sample.mask, None) for sample in samples],
        intensities=IntensityRange(low=(0.0,), high=(255.0,)),
        normalization=fit_training_normalization(sample.image for sample in samples),
        device=torch.device("cpu"),
    )


def curve_of(losses: list[float], *, rates: list[float] | None = None) -> RateCurve:
    chosen = rates or [10.0**exponent for exponent in range(-len(losses), 0)]
    points = zip(chosen, losses, losses, strict=True)
    return RateCurve(tuple(RatePoint(*values) for values in points), diverged=False)


def test_a_rate_far_above_diverges_and_suggestions_lie_before() -> None:
    seen: list[RatePoint] = []
    curve = sweep(small_fit(), SETTINGS, listener=seen.append)
    assert curve.diverged
    assert 5 < len(curve.points) < SETTINGS.steps
    assert list(curve.points) == seen
    assert all(np.isfinite([point.loss, point.smoothed]).all() for point in curve.points)
    lowest = min(curve.points, key=lambda point: point.smoothed)
    for suggestion in (curve.steepest, curve.valley):
        assert SETTINGS.start < suggestion <= lowest.rate < curve.points[-1].rate
    assert sweep(small_fit(), SETTINGS) == curve


def test_rates_and_means_are_those_of_the_formulas() -> None:
    settings = RateSettings(start=1e-6, end=1e-4, steps=20, smoothing=0.5)
    curve = sweep(small_fit(), settings)
    assert not curve.diverged
    np.testing.assert_allclose([p.rate for p in curve.points], np.geomspace(1e-6, 1e-4, 20))
    losses = np.array([point.loss for point in curve.points])
    for count in (1, 2, 20):
        weights = 0.5 ** np.arange(count)[::-1]
        expected = np.average(losses[:count], weights=weights)
        assert curve.points[count - 1].smoothed == pytest.approx(expected)


def test_suggestions_on_a_known_curve() -> None:
    curve = curve_of([5.0, 5.0, 4.9, 4.8, 3.0, 2.9, 2.8, 9.0])
    assert curve.steepest == 1e-5
    assert curve.valley == 1e-5
    uneven = curve_of([3.0, 2.0, 1.0, 2.0], rates=[1.0, 2.0, 1024.0, 2048.0])
    assert uneven.steepest == 1.0


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start is 2, which is not less than end, 1"):
        RateSettings().updated(start=2.0, end=1.0)
    with pytest.raises(ConfigError, match="diverges at once"):
        sweep(small_fit(), RateSettings(start=1e30, end=1e38, steps=20))
    with pytest.raises(OutputError, match="choose another folder"):
        write_curve(curve_of([3.0, 2.0, 1.0]), tmp_path)


def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for seed in range(4):
        sample = generate_cells(CellScene(shape=(96, 96), n_cells=5), seed)
        PillowImage.fromarray(sample.image[0]).save(tmp_path / f"images/{seed}.png")
        PillowImage.fromarray(sample.mask).save(tmp_path / f"masks/{seed}.png")
    recipe = tmp_path / "small.toml"
    recipe.write_text(tomli_w.dumps(RECIPE.model_dump(mode="json", exclude_none=True)))
    command = [
        "df2serve", "find-rate", tmp_path / "images", tmp_path / "masks", "-o", tmp_path / "rates",
        "--recipe", recipe, "--steps", 20, "--lowest", "1e-5", "--highest", 1, "--device", "cpu",
    ]  # fmt: skip

    def run() -> int:
        monkeypatch.setattr(sys, "argv", [str(part) for part in command])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    assert run() == 0
    told = capsys.readouterr().out
    with (tmp_path / "rates/rates.csv").open(newline="") as stream:
        rows = [
            RatePoint(**{name: float(value) for name, value in row.items()})
            for row in csv.DictReader(stream)
        ]
    np.testing.assert_allclose([row.rate for row in rows], np.geomspace(1e-5, 1, 20))
    curve = RateCurve(tuple(rows), diverged=False)
    assert f"falls fastest at {curve.steepest:.1e}" in told
    assert f"longest fall: {curve.valley:.1e}" in told
    with PillowImage.open(tmp_path / "rates/rates.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5
    assert run() == 2
    assert "exists; remove it or choose another folder" in capsys.readouterr().err
