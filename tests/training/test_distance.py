"""The distance channel: what is learned, along which geometry, and what it is good for."""

import math
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import tifffile
import torch
from scipy import ndimage

from df2serve import Predictor
from df2serve.artifact import Ensemble
from df2serve.config import InstanceConfig
from df2serve.core.instance_metrics import aggregated_jaccard, count_panoptic
from df2serve.core.instances import find_instances
from df2serve.core.metrics import match_instances
from df2serve.testing import CellScene, generate_cells
from df2serve_training.augment import Augmenter
from df2serve_training.dataset import IntensityRange, LabeledImage
from df2serve_training.ensemble import EnsembleFacts, train_ensemble
from df2serve_training.losses import create_loss, with_distance
from df2serve_training.patches import PatchSource, PatchStore
from df2serve_training.preflight import check_training_set
from df2serve_training.recipe import Recipe
from df2serve_training.sampler import PatchCenter, PatchSampler
from df2serve_training.settings import AugmentSettings, SamplingSettings
from df2serve_training.targets import IGNORED, relative_distance, separate_instances

# -- target -------------------------------------------------------------------------------------


def naive_distance(labels: np.ndarray) -> np.ndarray:
    """Every pixel of an object against every pixel that is not of it."""
    found = np.zeros(labels.shape)
    for y, x in np.argwhere(labels):
        others = np.argwhere(labels != labels[y, x])
        found[y, x] = min(math.dist((y, x), other) for other in others) if len(others) else 1
    for label in np.unique(labels[labels > 0]):
        found[labels == label] /= found[labels == label].max()
    return found


@pytest.mark.parametrize("seed", range(6))
def test_the_distance_of_instances_is_that_of_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = rng.choice([0, 2, 3, 7], size=(4, 5)).repeat(4, axis=0).repeat(3, axis=1)
    labels = np.where(rng.random(blocks.shape) < 0.9, blocks, 0).astype(np.int32)
    target = separate_instances(labels).astype(np.uint8)
    distance = relative_distance(target, labels)
    assert distance.dtype == np.float32
    np.testing.assert_allclose(distance, naive_distance(labels), atol=1e-6)


def test_without_instances_components_of_each_class_are_the_objects() -> None:
    rng = np.random.default_rng(0)
    target = rng.choice([0, 1, 2, IGNORED], size=(5, 6)).repeat(4, axis=0).repeat(4, axis=1)
    target = target.astype(np.uint8)
    labels = np.zeros(target.shape, np.int32)
    for k in (1, 2):
        parts = ndimage.label(target == k)[0]
        labels[parts > 0] = parts[parts > 0] + labels.max()
    np.testing.assert_allclose(relative_distance(target, None), naive_distance(labels), atol=1e-6)
    filled = np.ones((4, 4), np.uint8)
    assert np.array_equal(relative_distance(filled, None), np.ones((4, 4)))


# -- geometry -----------------------------------------------------------------------------------


def disk_image() -> tuple[LabeledImage, np.ndarray]:
    """Disks with a known distance, and the image of the distance as intensities."""
    sample = generate_cells(
        CellScene(shape=(120, 120), n_cells=9, radius_px=(8, 14), debris=0), seed=2
    )
    target = separate_instances(sample.labels).astype(np.uint8)
    distance = relative_distance(target, sample.labels)
    return LabeledImage(distance[None], target, sample.labels), distance


@pytest.mark.parametrize(
    "matrix",
    [
        ((1, 0), (0, 1)),
        ((-1, 0), (0, 1)),
        ((-1, 0), (0, -1)),
        ((0, 1), (-1, 0)),
        ((0.5, -0.6), (0.6, 0.5)),
        ((1.3, 0.2), (-0.1, 1.2)),
    ],
)
@pytest.mark.parametrize("center", [(60, 60), (5, 110)])
def test_the_distance_moves_with_the_pixels(matrix, center: tuple[int, int]) -> None:
    """The image shows the distance itself, so that patch and target have to agree."""
    image, _ = disk_image()
    store = PatchStore([image], device="cpu", distance=True)
    place = PatchCenter(0, *center)
    pixels, target = store.cut(place, np.array(matrix, float), (64, 96))
    assert target.shape == (2, 64, 96)
    assert target.dtype == torch.float32
    np.testing.assert_allclose(target[1], pixels[0], atol=1e-3)
    plain = PatchStore([image], device="cpu").cut(place, np.array(matrix, float), (64, 96))
    assert torch.equal(plain[0], pixels)
    assert torch.equal(plain[1], target[0].byte())


def test_turning_and_zooming_agree_with_the_target_of_the_turned_labels() -> None:
    """A relative distance stays what it is when objects are magnified: here by two."""
    rows, columns = np.indices((80, 80)) - 39.5
    labels = (np.hypot(rows, columns) < 15).astype(np.int32)
    target = labels.astype(np.uint8)
    store = PatchStore([LabeledImage(target[None], target, labels)], device="cpu", distance=True)
    _, cut = store.cut(PatchCenter(0, 40, 40), np.array([[0, 0.5], [-0.5, 0]]), (64, 64))
    wide = (np.hypot(*(np.indices((64, 64)) - 31.5)) < 30).astype(np.uint8)
    np.testing.assert_allclose(cut[1], relative_distance(wide, None), atol=0.07)


def test_batches_stack_classes_and_distances() -> None:
    image, _ = disk_image()
    source = PatchSource(
        PatchStore([image, image], device="cpu", distance=True),
        PatchSampler([image.target] * 2, SamplingSettings(), seed=0, member=0),
        Augmenter(AugmentSettings(), image_range(image), seed=0, member=0, device="cpu"),
        shape=(64, 32),
    )
    pixels, targets = source.batch(0, 5)
    assert pixels.shape == (5, 1, 64, 32)
    assert targets.shape == (5, 2, 64, 32)
    assert set(targets[:, 0].unique().tolist()) <= {0, 1}
    assert 0 <= targets[:, 1].min() < targets[:, 1].max() <= 1


def image_range(image: LabeledImage) -> IntensityRange:
    return IntensityRange(low=(0.0,), high=(float(image.pixels.max()),))


# -- loss ---------------------------------------------------------------------------------------


def test_the_loss_is_that_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    classes = torch.randint(0, 3, (2, 5, 6), generator=generator)
    classes[0, :2] = IGNORED
    distance = torch.rand(2, 5, 6, generator=generator, dtype=torch.float64)
    distance[1, 0] = 0
    distance[1, 1] = 1
    terms = []
    for n, y, x in np.ndindex(2, 5, 6):
        if classes[n, y, x] == IGNORED:
            continue
        p, d = 1 / (1 + math.exp(-outputs[n, 3, y, x])), float(distance[n, y, x])
        terms += [
            sum(w * math.log(w / q) for w, q in ((d, p), (1 - d, 1 - p)) if w),
        ]  # the Kullback-Leibler divergence of two coins
    plain = create_loss("ce_dice", num_classes=3)
    loss = with_distance(plain, weight=0.5)(outputs, torch.stack([classes, distance], dim=1))
    expected = float(plain(outputs[:, :3], classes)) + 0.5 * float(np.mean(terms))
    assert float(loss) == pytest.approx(expected)


def test_pixels_that_do_not_count_teach_nothing() -> None:
    outputs = torch.randn(1, 3, 4, 4, requires_grad=True)
    target = torch.full((1, 2, 4, 4), float(IGNORED))
    target[:, 1] = 0.7
    target[:, 0, :2] = 1
    loss = with_distance(create_loss("cross_entropy", num_classes=2), weight=1.0)
    (gradient,) = torch.autograd.grad(loss(outputs, target), outputs)
    assert (gradient[..., :2, :] != 0).all()
    assert (gradient[..., 2:, :] == 0).all()
    right = torch.full((1, 3, 4, 4), math.log(0.7 / 0.3))
    distance_alone = with_distance(lambda logits, classes: logits.sum() * 0, weight=1.0)
    assert float(distance_alone(right, target)) == pytest.approx(0, abs=1e-6)


# -- from images to objects ---------------------------------------------------------------------

CROWD = CellScene(
    shape=(128, 128),
    n_cells=12,
    radius_px=(7, 11),
    touching=0.9,
    debris=0,
    dim_share=0,
    photons=120,
)


def trained(folder: Path, *, steps: int, members: int) -> Ensemble:
    """An ensemble that learned from crowds of cells."""
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    for seed in range(6):
        sample = generate_cells(CROWD, seed)
        tifffile.imwrite(folder / f"images/{seed}.tif", sample.image[0])
        tifffile.imwrite(folder / f"masks/{seed}.tif", sample.labels.astype(np.uint16))
    recipe = Recipe.model_validate(
        {
            "members": members,
            "folds": {"count": 2},
            "data": {"masks": "instances"},
            "sampling": {"patch_shape": [64, 64]},
            "network": {
                "encoder": "tu-test_resnet",
                "weights": "random",
                "options": {"encoder_depth": 4, "decoder_channels": [32, 16, 8, 8]},
                "distance_head": True,
            },
            "augment": {"rotation": {"probability": 0, "low": 0, "high": 0}},
            "training": {
                "steps": steps,
                "precision": "fp32",
                "ema_decay": 0.9,
                "phases": [{"share": 1, "rate": 1e-2}],
            },
        }
    )
    data = check_training_set(
        folder / "images", folder / "masks", settings=recipe.data, folds=recipe.folds
    )
    facts = EnsembleFacts(id="crowd", name="Crowd")
    return train_ensemble(data, folder / "ens", recipe, facts=facts, device="cpu")


def test_a_training_writes_the_distance_into_the_ensemble(tmp_path: Path) -> None:
    ensemble = trained(tmp_path, steps=2, members=1)
    ensemble.verify()
    assert (ensemble.manifest.distance_channel, ensemble.manifest.num_outputs) == ("relative", 3)
    plain = smp.from_pretrained(ensemble.source).eval()
    with torch.inference_mode():
        assert plain(torch.zeros(1, 1, 64, 64)).shape == (1, 3, 64, 64)
    golden = ensemble.golden()
    assert golden is not None
    assert golden.distance is not None
    with Predictor(ensemble) as predictor:
        again = predictor.predict(golden.image, axes="CYX")
    np.testing.assert_allclose(again.distance, golden.distance, atol=1e-5)


@pytest.mark.slow
def test_the_learned_distance_tells_touching_cells_apart(tmp_path: Path) -> None:
    """On crowds that the network has not seen, judged by three scores."""
    ways = {
        "components": InstanceConfig(method="components"),
        "learned": InstanceConfig(method="watershed"),
    }
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in ways}
    with Predictor(trained(tmp_path, steps=150, members=1)) as predictor:
        for seed in range(100, 104):
            sample = generate_cells(CROWD, seed)
            prediction = predictor.predict(sample.image, axes="CYX")
            for name, config in ways.items():
                found = find_instances(prediction.mask, config=config, distance=prediction.distance)
                pairs[name].append((sample.labels, found.labels))

    def scores(name: str) -> tuple[float, float, float]:
        every = pairs[name]
        matches = [match_instances(*pair, thresholds=[0.5])[0].average_precision for pair in every]
        jaccard = [aggregated_jaccard(*pair) for pair in every]
        quality = [count_panoptic(*pair).quality for pair in every]
        return float(np.mean(matches)), float(np.mean(jaccard)), float(np.mean(quality))

    gains = np.subtract(scores("learned"), scores("components"))
    assert (gains > 0.3).all(), gains
    assert min(scores("learned")) > 0.6
