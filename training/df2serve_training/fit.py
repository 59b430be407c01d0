"""The training of one member: a plain loop that can be killed at any moment."""

from __future__ import annotations

import copy
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from df2serve.backends.torch import choose_device, choose_precision
from df2serve.config import TrainingNormalization
from df2serve.errors import InputError
from df2serve.files import replacing
from df2serve_training.augment import Augmenter
from df2serve_training.dataset import IntensityRange, LabeledImage
from df2serve_training.history import StepReport
from df2serve_training.losses import create_loss, with_distance
from df2serve_training.network import build_network
from df2serve_training.patches import PatchSource, PatchStore
from df2serve_training.recipe import OptimizerSettings, Recipe
from df2serve_training.sampler import PatchSampler
from df2serve_training.schedule import StepPlan, plan_step
from df2serve_training.validation import Validation

__all__ = ["MemberFit"]

_CHECKPOINT_VERSION = 1
_REPORT_STEPS = 10
_CHECKPOINT_SECONDS = 60.0
_LOADING_ERRORS = (OSError, RuntimeError, KeyError, EOFError, ValueError, UnpicklingError)


@dataclass
class MemberFit:
    """Network, optimizer and data of one member on one device.

    Every random number is a function of seed, member and step, so that a training which goes on
    from a checkpoint ends with the same weights as one that was never interrupted.
    """

    recipe: Recipe
    member: int
    """Number of the fold that it is validated on."""
    images: Sequence[LabeledImage]
    """Training images of this member."""
    intensities: IntensityRange
    """Of the whole training set."""
    normalization: TrainingNormalization
    """From these intensities to network input."""
    device: torch.device
    validation: Sequence[LabeledImage] = ()
    """Images to validate on now and then; without any, nothing is validated."""
    step: int = field(default=0, init=False)
    """Steps done."""
    seconds: float = field(default=0.0, init=False)
    """Wall-clock time of the training so far, as of the last report."""
    history: list[StepReport] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        training, channels = self.recipe.training, len(self.normalization.means)
        classes, distance = self.recipe.data.num_classes, self.recipe.network.distance_head
        network, self.origin = build_network(
            self.recipe.network,
            channels=channels,
            classes=classes + distance,
            seed=self._seed_of(-1),
        )
        self._network = network.to(self.device).to(memory_format=torch.channels_last)
        average: Any = get_ema_multi_avg_fn(training.ema_decay)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(self._network, multi_avg_fn=average, use_buffers=True)
        self._optimizer = _optimizer(self._network, self.recipe.optimizer)
        self._loss = create_loss(training.loss, num_classes=classes)
        if distance:
            self._loss = with_distance(self._loss, weight=training.distance_weight)
        seeds = {"seed": training.seed, "member": self.member}
        targets = [image.target for image in self.images]
        self._patches = PatchSource(
            PatchStore(self.images, device=self.device, distance=distance),
            PatchSampler(targets, self.recipe.sampling, **seeds),
            Augmenter(self.recipe.augment, self.intensities, **seeds, device=self.device),
            shape=self.recipe.sampling.patch_shape,
        )
        self._means, self._stds = (
            torch.tensor(values, device=self.device)[:, None, None]
            for values in (self.normalization.means, self.normalization.stds)
        )
        self._validation = Validation(
            self.validation,
            patch_shape=self.recipe.sampling.patch_shape,
            num_classes=classes,
            device=self.device,
        )
        self._low_precision = _in_bf16(self.device, training.precision)

    def run(self, *, checkpoint: Path, listener: Callable[[StepReport], None]) -> nn.Module:
        """Train to the end, from the checkpoint if there is one.

        Args:
            checkpoint: file that is replaced about once a minute.
            listener: called every few steps.

        Returns:
            The averaged network in evaluation mode, on the processor.

        Raises:
            InputError: the checkpoint is of another training.
            OutputError: it cannot be written.
        """
        if checkpoint.is_file():
            self.load(checkpoint)
        steps, saved = self.recipe.training.steps, time.monotonic()
        started = saved - self.seconds
        while self.step < steps:
            losses = [self.train_step() for _ in range(self.step, self._next_report())]
            self._report(losses, listener)
            self.seconds = time.monotonic() - started
            if time.monotonic() - saved > _CHECKPOINT_SECONDS:
                self.save(checkpoint)
                saved = time.monotonic()
        return self.averaged_network()

    def train_step(self) -> Tensor:
        """Do the next step of the recipe's schedule; return its loss, a tensor on the device."""
        training = self.recipe.training
        return self.take_step(plan_step(self.step, training.steps, training.phases))

    def take_step(self, plan: StepPlan) -> Tensor:
        """Do the next step at another rate; return its loss, a tensor on the device."""
        _apply(plan, self._optimizer, self.recipe.optimizer)
        self._freeze(plan.freeze_encoder)
        images, targets = self.batch(self.step)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self._seed_of(self.step))  # for dropout
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._low_precision):
                logits = self._network(images)
            loss = self._loss(logits.float(), targets)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        if self.recipe.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._network.parameters(), self.recipe.optimizer.clip_norm)
        self._optimizer.step()
        self.step += 1
        if self.recipe.training.ema_decay:
            self._average.update_parameters(self._network)
        return loss.detach()

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch of a step: normalized images (N, C, Y, X) and what the loss takes."""
        size = self.recipe.training.batch_size
        images, targets = self._patches.batch(step * size, size)
        if not self.recipe.network.distance_head:
            targets = targets.long()
        return self._normalized(images), targets

    def validation_dice(self) -> float | None:
        """Return the mean Dice score of the averaged network; None without any foreground."""
        network = self._averaged().eval()

        def classify(images: Tensor) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._low_precision):
                logits: Tensor = network(self._normalized(images))
            return logits[:, : self.recipe.data.num_classes].argmax(dim=1)

        with torch.inference_mode():
            return self._validation.dice(classify, batch_size=self.recipe.training.batch_size)

    def averaged_network(self) -> nn.Module:
        """Return a copy of the network as it is to be used."""
        return copy.deepcopy(self._averaged()).cpu().eval()

    def save(self, path: Path) -> None:
        """Replace the checkpoint; whoever is killed meanwhile leaves the old one."""
        content = {
            "version": _CHECKPOINT_VERSION,
            "identity": self._identity(),
            "step": self.step,
            "network": self._network.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "seconds": self.seconds,
            "history": [vars(report) for report in self.history],
        }
        with replacing(path, parents=True) as temporary, temporary.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: it is of another training, or damaged.
        """
        try:
            content = torch.load(path, map_location=self.device, weights_only=True)
            identity = content["identity"]
        except _LOADING_ERRORS as error:
            message = f"{path} is no checkpoint; remove it to start this member anew"
            raise InputError(message) from error
        if identity != self._identity():
            message = (
                f"{path} is of a training with other settings or data; train into another folder, "
                "or remove it to start this member anew"
            )
            raise InputError(message)
        self._network.load_state_dict(content["network"])
        self._average.load_state_dict(content["average"])
        self._optimizer.load_state_dict(content["optimizer"])
        self.step, self.seconds = content["step"], content["seconds"]
        self.history = [StepReport(**row) for row in content["history"]]

    def _report(self, losses: Sequence[Tensor], listener: Callable[[StepReport], None]) -> None:
        training = self.recipe.training
        report = StepReport(
            member=self.member,
            step=self.step,
            steps=training.steps,
            loss=float(torch.stack(list(losses)).mean()),
            rate=plan_step(self.step - 1, training.steps, training.phases).rate,
            dice=self.validation_dice() if self._validates(self.step) else None,
        )
        self.history.append(report)
        listener(report)

    def _next_report(self) -> int:
        """Return the step of the next report: some steps ahead, or at the next validation."""
        last = min(self.recipe.training.steps, self.step + _REPORT_STEPS)
        return next(filter(self._validates, range(self.step + 1, last)), last)

    def _validates(self, step: int) -> bool:
        every = self.recipe.training.validate_every
        return bool(self.validation) and every is not None and step % every == 0

    def _averaged(self) -> nn.Module:
        return self._average.module if self.recipe.training.ema_decay else self._network

    def _normalized(self, images: Tensor) -> Tensor:
        """Return raw intensities as the network takes them, axes (N, C, Y, X)."""
        normal = (images - self._means) / self._stds
        return normal.contiguous(memory_format=torch.channels_last)

    def _freeze(self, frozen: bool) -> None:  # noqa: FBT001
        """Let the encoder learn or not; the rest always does."""
        self._network.train()
        encoder = cast("nn.Module", cast("Any", self._network).encoder)
        encoder.train(not frozen)
        encoder.requires_grad_(not frozen)

    def _seed_of(self, step: int) -> int:
        """Return a seed of 63 bits for one step; -1 stands for the first weights."""
        text = f"{self.recipe.training.seed}/{self.member}/{step}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def _identity(self) -> str:
        """Return a hash of everything that the weights depend on."""
        digest = hashlib.sha256(self.recipe.model_dump_json().encode())
        digest.update(f"{self.member}/{self.normalization!r}/{self.intensities!r}".encode())
        for image in self.images:
            digest.update(np.ascontiguousarray(image.pixels).data)
            digest.update(np.ascontiguousarray(image.target).data)
            if self.recipe.network.distance_head and image.labels is not None:
                digest.update(np.ascontiguousarray(image.labels).data)
        return digest.hexdigest()


def _optimizer(network: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    groups = list(_parameter_groups(network, settings))
    match settings.name:
        case "adamw":
            return torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps)
        case "adam":
            return torch.optim.Adam(groups, betas=settings.betas, eps=settings.eps)
        case "sgd":
            return torch.optim.SGD(groups, momentum=settings.betas[0], nesterov=True)


def _parameter_groups(network: nn.Module, settings: OptimizerSettings) -> Iterator[dict[str, Any]]:
    """Yield parameters by part of the network; vectors, such as biases, do not decay."""
    encoder = {id(p) for p in cast("Any", network).encoder.parameters()}
    for part, scale in ((True, settings.encoder_rate), (False, 1.0)):
        members = [p for p in network.parameters() if (id(p) in encoder) == part]
        for decays in (True, False):
            yield {
                "params": [p for p in members if (p.ndim > 1) == decays],
                "weight_decay": settings.weight_decay if decays else 0.0,
                "rate_scale": scale,
            }


def _apply(plan: StepPlan, optimizer: torch.optim.Optimizer, settings: OptimizerSettings) -> None:
    """Set the rates of a step, and the momentum where it cycles."""
    for group in optimizer.param_groups:
        group["lr"] = plan.rate * group["rate_scale"]
        if settings.cycle_momentum and "betas" in group:
            group["betas"] = (plan.momentum, settings.betas[1])
        elif settings.cycle_momentum:
            group["momentum"] = plan.momentum


def _in_bf16(device: torch.device, precision: str) -> bool:
    if precision == "auto":
        return choose_precision(choose_device(str(device)), "auto") == "bf16"
    return precision == "bf16"
