"""Ensembles that know something: tiny networks fitted to synthetic cells in seconds."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

import numpy as np
from torch import nn

from df2serve.artifact import (
    Calibration,
    Ensemble,
    GoldenTensors,
    ReviewThreshold,
    save_ensemble,
)
from df2serve.artifact.manifest import colored_classes
from df2serve.backends.torch import TorchMemberRunner
from df2serve.config import TrainingNormalization
from df2serve.core.metrics import mean_dice
from df2serve.core.normalize import affine_of, fit_training_normalization
from df2serve.core.ranking import minimum_failing_score
from df2serve.errors import ConfigError, OutputError
from df2serve.inference import Prediction, Predictor
from df2serve.testing._fitting import CROP, RECIPE, fit_folds, single_threads
from df2serve.testing.cells import (
    OOD_KINDS,
    CellSample,
    CellScene,
    generate_cells,
    generate_ood,
)
from df2serve.testing.ensembles import manifest_fields, tiny_network

__all__ = ["FITTED_SCENE", "fitted_ensemble"]

FITTED_SCENE = CellScene(shape=(256, 256), n_cells=15, debris=10, dim_share=0.2)
"""What an ensemble is fitted to unless told otherwise: small images, most cells well visible."""

_SEEDS = 1_000_000  # per ensemble; the first million is left to the caller
_FIRST_REFERENCE = _SEEDS // 2
_REFERENCES_PER_KIND = 2  # of odd images; half as many ordinary ones as odd ones in all
_REQUIRED_DICE = 0.7

_TILE = 128

_CLASSES = {
    "one": ("background", "cell"),
    "brightness": ("background", "bright cell", "dim cell"),
    "shape": ("background", "round cell", "elongated cell"),
}
_CHANNELS = {1: ("marker",), 2: ("marker", "nuclei"), 3: ("red", "green", "blue")}
_PACKAGES = ("df2serve", "segmentation-models-pytorch", "timm", "torch")


def fitted_ensemble(
    target: str | Path,
    *,
    scene: CellScene = FITTED_SCENE,
    members: int = 3,
    seed: int = 0,
    images: int = 30,
    steps: int = 150,
) -> Ensemble:
    """Fit an ensemble to synthetic cells and write it, with golden tensors and a review threshold.

    Every member leaves out one fold of the images. The threshold comes from new images, ordinary
    ones and two of each odd kind; it is absent if none of their predictions fails. Equal arguments
    give equal folders on the same machine. Images of seeds below a million are never used.

    Args:
        target: folder to create.
        scene: the ordinary images; classes by shape are not learned in the steps of the default.
        members: number of networks and of folds, at least 2.
        seed: 0 or more; another seed means other images and other networks.
        images: training images in all, at least one per fold.
        steps: optimizer steps of every member.

    Raises:
        ConfigError: an argument is out of range, or the scene is too small.
        OutputError: the target exists, or cannot be written.

    Example:
        >>> ensemble = fitted_ensemble("cells", members=2)  # doctest: +SKIP
        >>> image = generate_cells(FITTED_SCENE, seed=0).image  # doctest: +SKIP
        >>> df2serve.predict(image, ensemble=ensemble, axes="CYX").scores.u  # doctest: +SKIP
        0.14
    """
    _require_at_least(members=(members, 2), seed=(seed, 0), images=(images, members))
    _require_at_least(steps=(steps, 2), scene_side=(min(scene.shape), CROP))
    if Path(target).exists():
        message = f"{target} exists; remove it or choose another folder"
        raise OutputError(message)
    first_seed = (seed + 1) * _SEEDS
    samples = [generate_cells(scene, first_seed + index) for index in range(images)]
    normalization = fit_training_normalization(sample.image for sample in samples)
    networks = _fit(samples, normalization, members=members, seed=first_seed, steps=steps)
    fields = _fields(samples, normalization, seed=seed, steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        draft = save_ensemble(Path(folder) / "draft", fields, networks, files={})
        own_folds = [
            _judge(draft, [network], samples[fold::members], views=1)
            for fold, network in enumerate(networks)
        ]
        references = _draw_references(scene, first_seed + _FIRST_REFERENCE)
        judged = _judge(draft, networks, references, views=4)
    described = [
        {
            "folder": f"members/fold-{fold}",
            "fold": fold,
            "validation": {"dice": fmean(one.dice for one in own)},
        }
        for fold, own in enumerate(own_folds)
    ]
    files = _golden(judged[0]) | _calibration(judged)
    return save_ensemble(target, fields | {"members": described}, networks, files=files)


@dataclass(frozen=True, eq=False)
class _Judged:
    """A prediction beside the truth."""

    sample: CellSample
    prediction: Prediction

    @property
    def dice(self) -> float:
        """Mean Dice score; 1 where nothing is to be found and nothing was."""
        n_classes = self.sample.scene.n_classes
        score = mean_dice(self.sample.mask, self.prediction.mask, n_classes=n_classes)
        return 1.0 if score is None else score


def _require_at_least(**values: tuple[int, int]) -> None:
    """Compare arguments with the smallest values that they may have."""
    for name, (value, least) in values.items():
        if value < least:
            message = f"{name} = {value} is too small; expected {least} or more"
            raise ConfigError(message)


def _fields(
    samples: Sequence[CellSample], normalization: TrainingNormalization, *, seed: int, steps: int
) -> dict[str, object]:
    """Return the fields of the manifest, but for the members."""
    scene = samples[0].scene
    facts = {"data": "synthetic cells", "seed": seed, "images": len(samples), "steps": steps}
    settings = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(scene).items()
    }
    fields = manifest_fields(channels=scene.channels, classes=scene.n_classes, tile=_TILE)
    return fields | {
        "id": "synthetic-cells",
        "name": "Synthetic cells",
        "description": "Tiny networks fitted to synthetic images of cells, for tests and tours.",
        "classes": colored_classes(_CLASSES[scene.classes]),
        "channels": [{"name": name} for name in _CHANNELS[scene.channels]],
        "pixel_size_um": {"y_um": scene.pixel_size_um, "x_um": scene.pixel_size_um},
        "normalization": normalization,
        "encoder_weights": {"name": "random"},
        "training": facts | RECIPE | {"scene": settings},
        "versions": {package: version(package) for package in _PACKAGES},
    }


def _fit(
    samples: Sequence[CellSample],
    normalization: TrainingNormalization,
    *,
    members: int,
    seed: int,
    steps: int,
) -> list[nn.Module]:
    """Return networks, each fitted to the samples outside its fold."""
    scene = samples[0].scene
    networks = [
        tiny_network(seed + fold, channels=scene.channels, classes=scene.n_classes)
        for fold in range(members)
    ]
    affine = affine_of(normalization, samples[0].image)
    images = np.stack([np.moveaxis(affine(sample.image), 0, -1) for sample in samples])
    masks = np.stack([sample.mask for sample in samples]).astype(np.int64)
    vary = scene.classes == "one"  # harder than several classes leave room for in so few steps
    fit_folds(networks, images, masks, steps=steps, seed=seed, vary=vary)
    return networks


def _draw_references(scene: CellScene, first_seed: int) -> list[CellSample]:
    """Draw images for the threshold, ordinary ones first."""
    seeds = range(first_seed, first_seed + _REFERENCES_PER_KIND)
    odd = [generate_ood(kind, scene, seed) for kind in OOD_KINDS for seed in seeds]
    ordinary = range(seeds.stop, seeds.stop + len(odd) // 2)
    return [generate_cells(scene, seed) for seed in ordinary] + odd


def _judge(
    ensemble: Ensemble, networks: Sequence[nn.Module], samples: Sequence[CellSample], *, views: int
) -> list[_Judged]:
    """Predict samples with some of the networks, as everybody does later."""
    runners = [TorchMemberRunner(net, device="cpu", precision="fp32") for net in networks]
    config = ensemble.manifest.inference.updated(views=views)

    def judge(sample: CellSample) -> _Judged:
        with Predictor(ensemble, config=config, runners=runners) as predictor:
            return _Judged(sample, predictor.predict(sample.image, axes="CYX"))

    with single_threads(len(ensemble)) as pool:
        return list(pool.map(judge, samples))


def _golden(judged: _Judged) -> dict[str, bytes]:
    """Return the files of the golden tensors."""
    prediction = judged.prediction
    tensors = GoldenTensors(
        image=judged.sample.image, probs=prediction.probs, total=prediction.total
    )
    return tensors.to_files()


def _calibration(judged: Sequence[_Judged]) -> dict[str, bytes]:
    """Return ``calibration.json``, if a prediction fails."""
    scored = [(u, one.dice) for one in judged if (u := one.prediction.scores.u) is not None]
    scores, qualities = zip(*scored, strict=True)
    threshold = minimum_failing_score(scores, qualities, required=_REQUIRED_DICE)
    if threshold is None:
        return {}
    failing = sum(quality < _REQUIRED_DICE for quality in qualities)
    content = Calibration(
        thresholds=(
            ReviewThreshold(
                score="u",
                value=threshold,
                metric="dice",
                required=_REQUIRED_DICE,
                failing=failing,
                references=len(scored),
                kind="held_out",
                level=1 / (failing + 1),
            ),
        )
    )
    return {"calibration.json": content.model_dump_json(indent=2).encode()}
