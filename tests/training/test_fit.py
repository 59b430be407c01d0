"""The loop: it learns, and interruptions leave no trace."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from df2serve.core.normalize import fit_training_normalization
from df2serve.errors import InputError
from df2serve.testing import CellScene, generate_cells
from df2serve_training.dataset import IntensityRange, LabeledImage
from df2serve_training.fit import MemberFit
from df2serve_training.history import StepReport
from df2serve_training.recipe import Recipe
from df2serve_training.targets import IGNORED

RECIPE = {
    "network": {
        "encoder": "tu-test_resnet",
        "weights": "random",
        "options": {"encoder_depth": 4, "decoder_channels": [32, 16, 8, 8]},
    },
    "sampling": {"patch_shape": [64, 64]},
    "training": {
        "steps": 30,
        "batch_size": 2,
        "ema_decay": 0.8,
        "phases": [
            {"share": 0.3, "rate": 1e-3, "freeze_encoder": True},
            {"share": 0.7, "rate": 5e-3},
        ],
    },
}


def small_fit(*, validation: Sequence[LabeledImage] = (), **training: object) -> MemberFit:
    scene = CellScene(shape=(96, 96), n_cells=5, debris=4)
    samples = [generate_cells(scene, seed) for seed in range(3)]
    return MemberFit(
        recipe=Recipe.model_validate(RECIPE | {"training": RECIPE["training"] | training}),
        member=0,
        images=[LabeledImage(sample.image, sample.mask, None) for sample in samples],
        intensities=IntensityRange(low=(0.0,), high=(255.0,)),
        normalization=fit_training_normalization(sample.image for sample in samples),
        device=torch.device("cpu"),
        validation=validation,
    )


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_it_learns_and_reports(tmp_path: Path) -> None:
    seen: list[StepReport] = []
    fit = small_fit()
    fit.run(checkpoint=tmp_path / "checkpoint", listener=seen.append)
    assert [report.step for report in seen] == [10, 20, 30]
    assert seen[-1].loss < 0.8 * seen[0].loss
    assert fit.history == seen


def test_the_encoder_is_frozen_at_first_and_only_then() -> None:
    fit = small_fit()
    before = {name: value.clone() for name, value in fit._network.state_dict().items()}
    for _ in range(8):
        fit.train_step()
    after = fit._network.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "segmentation_head"}
    for _ in range(4):
        fit.train_step()
    later = fit._network.encoder.state_dict()
    assert any(not torch.equal(before[f"encoder.{name}"], later[name]) for name in later)


def test_the_average_is_the_one_of_the_formula() -> None:
    fit = small_fit()
    expected: torch.Tensor | None = None
    for _ in range(12):
        fit.train_step()
        weight = fit._network.segmentation_head[0].weight.detach().clone()
        expected = weight if expected is None else 0.8 * expected + 0.2 * weight
    torch.testing.assert_close(fit.averaged_network().segmentation_head[0].weight, expected)
    last = small_fit(ema_decay=0)
    last.train_step()
    assert same(last.averaged_network(), last._network)


@pytest.mark.parametrize("stop", [1, 9, 17])
def test_going_on_gives_the_same_weights(tmp_path: Path, stop: int) -> None:
    """The stops lie in the frozen phase, at its end and behind it."""
    whole = small_fit().run(checkpoint=tmp_path / "none", listener=lambda report: None)
    first = small_fit()
    for _ in range(stop):
        first.train_step()
    first.save(tmp_path / "checkpoint")
    resumed = small_fit().run(checkpoint=tmp_path / "checkpoint", listener=lambda report: None)
    assert same(whole, resumed)


@pytest.mark.parametrize("ema_decay", [0.8, 0.0])
def test_validation_changes_no_weight(tmp_path: Path, ema_decay: float) -> None:
    """Images of 96 pixels need four patches of 64, which reach over their edges."""
    unseen = [generate_cells(CellScene(shape=(96, 96), n_cells=5), seed) for seed in (7, 8)]
    images = [LabeledImage(sample.image, sample.mask, None) for sample in unseen]
    images[0].target[:20] = IGNORED
    nobody = [].append
    plain = small_fit(steps=14, ema_decay=ema_decay)
    without = plain.run(checkpoint=tmp_path / "none", listener=nobody)
    fit = small_fit(validation=images, steps=14, ema_decay=ema_decay, validate_every=7)
    network = fit.run(checkpoint=tmp_path / "none", listener=nobody)
    assert same(network, without)
    assert [(report.step, report.dice is None) for report in fit.history] == [
        (7, False),
        (14, False),
    ]
    assert all(report.dice is None for report in plain.history)

    scores = []
    for image in images:
        mask = np.zeros((96, 96), np.uint8)
        padded = np.pad(image.pixels, ((0, 0), (0, 32), (0, 32)), mode="symmetric")
        for y, x in [(0, 0), (0, 64), (64, 0), (64, 64)]:
            tile = torch.from_numpy(padded[None, :, y : y + 64, x : x + 64].astype(np.float32))
            with torch.inference_mode():
                logits = network((tile - fit._means) / fit._stds)
            classes = logits[0].argmax(dim=0).numpy()
            mask[y : y + 64, x : x + 64] = classes[: 96 - y, : 96 - x]
        counts = image.target != IGNORED
        both = ((image.target == 1) & (mask == 1))[counts].sum()
        scores.append(2 * both / ((image.target == 1)[counts].sum() + mask[counts].sum()))
    assert fit.history[-1].dice == pytest.approx(np.mean(scores))


def test_checkpoints_of_other_trainings(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    small_fit().save(path)
    with pytest.raises(InputError, match="of a training with other settings or data"):
        small_fit(seed=1).load(path)
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="is no checkpoint; remove it"):
        small_fit().load(path)


KILLED = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("test_fit", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["test_fit"] = module
spec.loader.exec_module(module)
from pathlib import Path
import df2serve_training.fit as fit
fit._CHECKPOINT_SECONDS = 0.0
network = module.small_fit(steps=60).run(
    checkpoint=Path(sys.argv[2]), listener=lambda report: print(report.step, flush=True)
)
torch.save(network.state_dict(), sys.argv[2] + ".final")
"""


@pytest.mark.slow
def test_killed_ten_times(tmp_path: Path) -> None:
    """Killed with SIGKILL while it computes or writes, and started again, ten times."""
    torch.manual_seed(0)
    whole = small_fit(steps=60).run(checkpoint=tmp_path / "none", listener=lambda report: None)
    path = tmp_path / "checkpoint"
    command = [sys.executable, "-c", KILLED, __file__, str(path)]
    for kill in range(10):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()  # it got somewhere
            time.sleep(0.05 * kill)
            process.kill()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    final = torch.load(f"{path}.final", weights_only=True)
    assert all(torch.equal(value, final[name]) for name, value in whole.state_dict().items())
