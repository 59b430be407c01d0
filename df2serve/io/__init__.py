"""Files to images and masks."""

from df2serve.io.image import Image, PixelSize, Selection, require_finite
from df2serve.io.isolation import inspect_image_isolated, read_image_isolated
from df2serve.io.masks import ClassMask, InstanceMask, read_mask
from df2serve.io.reading import list_images, open_image, read_image

__all__ = [
    "ClassMask",
    "Image",
    "InstanceMask",
    "PixelSize",
    "Selection",
    "inspect_image_isolated",
    "list_images",
    "open_image",
    "read_image",
    "read_image_isolated",
    "read_mask",
    "require_finite",
]
