"""Files to images and masks."""

from df2serve.io.image import Image, PixelSize, Selection, require_finite
from df2serve.io.reading import list_images, open_image, read_image

__all__ = [
    "Image",
    "PixelSize",
    "Selection",
    "list_images",
    "open_image",
    "read_image",
    "require_finite",
]
