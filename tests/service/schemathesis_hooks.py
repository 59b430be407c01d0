"""What schemathesis sends where the document says that an image is expected."""

import io

import numpy as np
import schemathesis
import tifffile
from hypothesis import strategies as st
from PIL import Image


def npy(pixels):
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


def tiff(pixels):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels)
    return buffer.getvalue()


def picture(kind):
    def write(pixels):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        return buffer.getvalue()

    return write


small = st.builds(
    lambda height, width, value: np.full((height, width), value, np.uint8),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 255),
)
for media_type, write in {
    "application/octet-stream": npy,
    "application/x-npy": npy,
    "image/jpeg": picture("JPEG"),
    "image/png": picture("PNG"),
    "image/tiff": tiff,
}.items():
    schemathesis.openapi.media_type(media_type, small.map(write) | st.binary(max_size=200))
schemathesis.openapi.media_type("application/offset+octet-stream", st.binary(max_size=200))
schemathesis.openapi.format("binary", small.map(npy) | st.binary(max_size=200))
