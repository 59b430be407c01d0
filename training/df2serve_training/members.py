"""The members of an ensemble while they are trained."""

from __future__ import annotations

import torch

from df2serve.config import TrainingNormalization
from df2serve_training.dataset import TrainingSet
from df2serve_training.fit import MemberFit
from df2serve_training.folds import Splits
from df2serve_training.recipe import Recipe

__all__ = ["create_fit"]


def create_fit(
    data: TrainingSet,
    recipe: Recipe,
    *,
    splits: Splits,
    fold: int,
    normalization: TrainingNormalization,
    device: torch.device,
) -> MemberFit:
    """Load the images that a member is trained on, and build its network.

    Args:
        data: all images.
        recipe: settings.
        splits: of all images.
        fold: that the member is validated on.
        normalization: of all images.
        device: to train on.
    """
    names = splits.training_names(fold)
    return MemberFit(
        recipe=recipe,
        member=fold,
        images=[data.load(image) for image in data.take(names).images],
        intensities=data.intensity_range(),
        normalization=normalization,
        device=device,
    )
