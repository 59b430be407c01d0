"""What people say of a network that its file does not say, or says wrongly."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from df2serve.config import Frozen, Normalization

__all__ = ["ImportSettings"]

Name = Annotated[str, Field(min_length=1)]
Side = Annotated[int, Field(ge=32)]


class ImportSettings(Frozen):
    """Facts about imported networks; what is absent is taken from the file."""

    title: ClassVar[str] = "import settings"
    name: Name | None = None
    """Title of the ensemble; the name of its folder when absent."""
    classes: tuple[Name, ...] | None = None
    """Names of the K classes, background first."""
    channels: tuple[Name, ...] | None = None
    """Names of the C channels in the order of the network's input."""
    normalization: Normalization | None = None
    """How intensities become network input."""
    tile_shape: tuple[Side, Side] | None = None
    """Rows and columns of a tile, the patch size of the training."""
    unstated_tile_shape: tuple[Side, Side] = (512, 512)
    """The tile where neither file nor people name one; it is deepflash2's default."""
    zoom_out: Annotated[float, Field(ge=1, le=64)] | None = None
    """Pixels of an image per pixel that the networks were trained on, along each axis."""
    pixel_size_um: Annotated[float, Field(gt=0)] | None = None
    """Edge length of a pixel of the training images in micrometers."""
    license: Name | None = None
    """License of the weights that their author chose."""
    encoder: Name | None = None
    """The encoder's name in segmentation-models-pytorch, for TorchScript files that do not tell."""
