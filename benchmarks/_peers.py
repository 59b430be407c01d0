"""The same ensemble on the same tiles, as users of other libraries would run it.

Every peer takes a :class:`Case` and gives class probabilities, axes (K, Y, X), averaged over
members and views. Loading the members is not part of any timing.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from bioimageio.core import PredictionPipeline, create_prediction_pipeline
from bioimageio.core.digest_spec import create_sample_for_model
from bioimageio.spec.model import v0_5
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray
from torch import Tensor, nn

from df2serve.core.tiling import TilePlan, gaussian_window

__all__ = ["Case", "CoreBlocks", "monai_windows", "naive_loop", "network_alone"]

FLIPS: tuple[tuple[int, ...], ...] = ((), (-2,), (-1,), (-2, -1))
_HALO_STEP = 16


@dataclass(frozen=True, eq=False)
class Case:
    """What all contenders compute."""

    networks: Sequence[nn.Module]
    """The members, from normalised tiles to logits."""
    image: NDArray[np.generic]
    """Raw intensities, axes (C, Y, X)."""
    mean: float
    std: float
    plan: TilePlan
    overlap: float
    """Of the plan's tiles, as a share of their side."""
    sigma: float
    """Standard deviation of the blending window, as a share of the tile's side."""
    batch: int
    """Network inputs per forward pass, where a contender batches."""

    @property
    def side(self) -> int:
        """Rows and columns of a tile."""
        return self.plan.rows.side

    def normalized(self) -> Tensor:
        """Return the whole image as network input, axes (1, C, Y, X)."""
        pixels = torch.from_numpy(self.image.astype(np.float32))[None]
        return (pixels - self.mean) / self.std

    def window(self) -> Tensor:
        """Return the blending weights of a tile, axes (tile rows, tile columns)."""
        axis = torch.from_numpy(gaussian_window(self.side, self.sigma))
        return torch.outer(axis, axis)


def network_alone(case: Case, networks: Sequence[nn.Module], layout: torch.memory_format) -> None:
    """Run all forward passes of the plan and nothing else, on one batch again and again."""
    tile = case.normalized()[:, :, : case.side, : case.side]
    batch = tile.repeat(case.batch, 1, 1, 1).contiguous(memory_format=layout)
    with torch.inference_mode():
        for _ in range(math.ceil(len(case.plan) * len(FLIPS) / case.batch)):
            for network in networks:
                network(batch)


def naive_loop(case: Case) -> NDArray[np.float32]:
    """Loop over tiles, views and members one by one, as deepflash2 does.

    All samples of a tile are stacked, mean and both parts of the variance are taken from the stack,
    and probabilities, uncertainty and weights are summed in maps of the image's size. Tiles are
    sliced, not resampled from the whole image, and members are not traced, which favors the loop.
    """
    rows, columns = case.plan.rows, case.plan.columns
    height, width = rows.length, columns.length
    image = case.normalized()
    window = case.window()
    probs = torch.zeros(0)
    merge, deviation = torch.zeros(height, width), torch.zeros(height, width)
    with torch.inference_mode():
        for column in columns.placed:
            for row in rows.placed:
                tile = image[:, :, row, column]
                samples = []
                for flip in FLIPS:
                    for network in case.networks:
                        logits = network(torch.flip(tile, flip))
                        samples.append(torch.softmax(torch.flip(logits, flip), dim=1))
                stack = torch.stack(samples)
                mean = stack.mean(dim=0)
                epistemic = (stack**2).mean(dim=0) - mean**2
                aleatoric = (stack * (1 - stack)).mean(dim=0)
                if not len(probs):
                    probs = torch.zeros(mean.shape[1], height, width)
                probs[:, row, column] += (mean * window)[0]
                deviation[row, column] += ((epistemic + aleatoric) / 0.25).mean(dim=1)[0] * window
                merge[row, column] += window
        probs /= merge
        deviation /= merge
        probs.argmax(dim=0)
    return probs.numpy()


def monai_windows(case: Case) -> NDArray[np.float32]:
    """Run MONAI's sliding windows on every view of the image, member by member.

    MONAI raises the smallest weights of its Gaussian to 0.001; it is given ours instead, at no
    cost, so that the results can be compared.
    """
    image = case.normalized()
    window = case.window()
    total = torch.zeros(0)
    with torch.inference_mode():
        for network in case.networks:
            for flip in FLIPS:
                probs = sliding_window_inference(
                    torch.flip(image, flip),
                    roi_size=(case.side, case.side),
                    sw_batch_size=case.batch,
                    predictor=lambda tiles, member=network: torch.softmax(member(tiles), dim=1),
                    overlap=case.overlap,
                    mode="gaussian",
                    sigma_scale=case.sigma,
                    roi_weight_map=window,
                )
                restored = torch.flip(cast("Tensor", probs), flip)[0]
                total = total + restored if len(total) else restored
        mean = total / (len(case.networks) * len(FLIPS))
        _finish(mean)
    return mean.numpy()


class CoreBlocks:
    """bioimageio.core's blockwise prediction: one package per member, a loop over the views.

    Blocks have the size of our tiles, and the halo is the largest that leads to equally many.
    """

    def __init__(self, case: Case, pipelines: Sequence[PredictionPipeline]) -> None:
        """Take pipelines that are open."""
        self._case = case
        self._pipelines = pipelines

    @classmethod
    @contextmanager
    def opened(cls, case: Case) -> Iterator[CoreBlocks]:
        """Write the members as packages to a temporary folder and open them."""
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            descriptions = [
                _describe(case, network, Path(folder) / f"member_{index}")
                for index, network in enumerate(case.networks)
            ]
            pipelines = [
                stack.enter_context(create_prediction_pipeline(each, devices=["cpu"]))
                for each in descriptions
            ]
            yield cls(case, pipelines)

    def __call__(self) -> NDArray[np.float32]:
        """Return the mean over members and views."""
        views = []
        for pipeline in self._pipelines:
            for flip in FLIPS:
                image = np.flip(self._case.image, flip)[None].astype(np.float32)
                sample = create_sample_for_model(pipeline.model_description, inputs=image)
                output = pipeline.predict_sample_with_blocking(sample)
                (member,) = output.members.values()
                views.append(np.flip(member.to_numpy()[0], flip))
        mean = torch.from_numpy(np.mean(views, axis=0))
        _finish(mean)
        return mean.numpy()


def _finish(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return mask and total uncertainty (eq. 4) of mean probabilities, axes (K, Y, X)."""
    return mean.argmax(dim=0), 4 / len(mean) * (mean * (1 - mean)).sum(dim=0)


def _halo(case: Case) -> int:
    """Return the widest halo with which the image splits into as many blocks as tiles."""
    length, tiles = case.plan.rows.length, len(case.plan.rows)
    narrowest = math.ceil(length / tiles)
    return (case.side - narrowest) // 2 // _HALO_STEP * _HALO_STEP


def _describe(case: Case, network: nn.Module, folder: Path) -> v0_5.ModelDescr:
    """Write a member with softmax as a package and return its description."""
    folder.mkdir()
    kwargs = {
        **cast("dict[str, object]", network.config),
        "encoder_weights": None,
        "activation": "softmax2d",
    }
    torch.save(network.state_dict(), folder / "weights.pt")
    side, halo, channels = case.side, _halo(case), case.image.shape[0]
    example = case.image[None, :, :side, :side].astype(np.float32)
    np.save(folder / "input.npy", example)
    with torch.inference_mode():
        normalized = (torch.from_numpy(example) - case.mean) / case.std
        probs = torch.softmax(network(normalized), dim=1).numpy()
    np.save(folder / "output.npy", probs)
    (folder / "README.md").write_text("# Member of a benchmark\n\n## Validation\nnone\n")
    raw, result = v0_5.TensorId("raw"), v0_5.TensorId("probabilities")

    def names(prefix: str, count: int) -> list[v0_5.Identifier]:
        return [v0_5.Identifier(f"{prefix}{index}") for index in range(count)]

    x, y = v0_5.AxisId("x"), v0_5.AxisId("y")
    source = v0_5.InputTensorDescr(
        id=raw,
        axes=[
            v0_5.BatchAxis(),
            v0_5.ChannelAxis(channel_names=names("channel", channels)),
            v0_5.SpaceInputAxis(id=y, size=side),
            v0_5.SpaceInputAxis(id=x, size=side),
        ],
        test_tensor=v0_5.FileDescr(source=folder / "input.npy"),
        data=v0_5.IntervalOrRatioDataDescr(type="float32"),
        preprocessing=[
            v0_5.FixedZeroMeanUnitVarianceDescr(
                kwargs=v0_5.FixedZeroMeanUnitVarianceKwargs(mean=case.mean, std=case.std)
            )
        ],
    )
    target = v0_5.OutputTensorDescr(
        id=result,
        axes=[
            v0_5.BatchAxis(),
            v0_5.ChannelAxis(channel_names=names("class", probs.shape[1])),
            *(
                v0_5.SpaceOutputAxisWithHalo(
                    id=axis, size=v0_5.SizeReference(tensor_id=raw, axis_id=axis), halo=halo
                )
                for axis in (y, x)
            ),
        ],
        test_tensor=v0_5.FileDescr(source=folder / "output.npy"),
    )
    weights = v0_5.PytorchStateDictWeightsDescr(
        source=folder / "weights.pt",
        architecture=v0_5.ArchitectureFromLibraryDescr(
            callable=v0_5.Identifier(type(network).__name__),
            import_from="segmentation_models_pytorch",
            kwargs=kwargs,
        ),
        pytorch_version=v0_5.Version(torch.__version__.partition("+")[0]),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return v0_5.ModelDescr(
            name="Member of a benchmark",
            description="A network in a benchmark.",
            authors=[v0_5.Author(name="nobody")],
            cite=[v0_5.CiteEntry(text="none", url=v0_5.HttpUrl("https://example.org"))],
            documentation=v0_5.FileDescr(source=folder / "README.md"),
            license=v0_5.LicenseId("CC0-1.0"),
            inputs=[source],
            outputs=[target],
            weights=v0_5.WeightsDescr(pytorch_state_dict=weights),
        )
