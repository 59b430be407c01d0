"""How the intensities of a training set become network input."""

from __future__ import annotations

from dataclasses import dataclass, replace

from df2serve.config import ImageNormalization, Normalization, TrainingNormalization
from df2serve.core.normalize import affine_of, fit_training_normalization
from df2serve.errors import ImageMismatchError, InputError
from df2serve_training.dataset import IntensityRange, LabeledImage, TrainingImage, TrainingSet

__all__ = ["InputScale", "fit_scale"]


@dataclass(frozen=True)
class InputScale:
    """Intensities that images are kept and varied in, and the step from there to network input."""

    recorded: Normalization
    """The whole way from raw intensities, for whoever predicts."""
    constants: TrainingNormalization
    """From the intensities that images are kept in to network input."""
    intensities: IntensityRange
    """Of the whole training set, as images are kept."""

    def load(self, data: TrainingSet, image: TrainingImage) -> LabeledImage:
        """Return an image as it is kept: raw, or standardized if each image is by itself."""
        labeled = data.load(image)
        if isinstance(self.recorded, TrainingNormalization):
            return labeled
        affine = affine_of(self.recorded, labeled.pixels)
        return replace(labeled, pixels=affine(labeled.pixels))


def fit_scale(data: TrainingSet) -> InputScale:
    """Return the scale that the settings of a training set ask for; reads all images once.

    Raises:
        InputError: images, all of which are listed, have a channel without contrast, where each
            image is normalized by itself.
    """
    if data.settings.normalization == "training":
        constants = fit_training_normalization(data.load(image).pixels for image in data.images)
        return InputScale(constants, constants, data.intensity_range())
    recorded, flat, ranges = ImageNormalization(), [], []
    for image in data.images:
        try:
            affine = affine_of(recorded, data.load(image).pixels)
        except ImageMismatchError:
            flat.append(image.name)
            continue
        low, high = (
            tuple(float(value) for value in (bounds - affine.offset) / affine.scale)
            for bounds in (image.intensities.low, image.intensities.high)
        )
        ranges.append(replace(image, intensities=IntensityRange(low, high)))
    if flat:
        message = (
            f"images with a channel of one constant intensity: {', '.join(flat)}; leave them out, "
            'or use normalization = "training"'
        )
        raise InputError(message)
    channels = data.num_channels
    return InputScale(
        recorded,
        TrainingNormalization(means=(0.0,) * channels, stds=(1.0,) * channels),
        replace(data, images=tuple(ranges)).intensity_range(),
    )
