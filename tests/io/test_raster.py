"""PNG written by Pillow and imagecodecs, JPEG by Pillow, read by df2serve."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import Image as Pillow

from df2serve.config import DecodeLimits
from df2serve.errors import DecodeError, InputError, LimitExceededError, UnsupportedFormatError
from df2serve.io import Selection, read_image

GRAY = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
DEEP = np.random.default_rng(2).integers(0, 65535, (20, 30, 3), dtype=np.uint16)


def encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def lying_png(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def test_gray_png():
    image = read_image(encode(Pillow.fromarray(GRAY)))
    assert (image.format, image.dtype, image.shape) == ("PNG", np.uint8, (1, 20, 30))
    assert np.array_equal(image.data[0], GRAY)


def test_rgb_png_has_three_channels():
    image = read_image(encode(Pillow.fromarray(RGB)))
    assert np.array_equal(image.data, RGB.transpose(2, 0, 1))


def test_bilevel_png_is_bool():
    image = read_image(encode(Pillow.fromarray(GRAY > 99)))
    assert image.dtype == bool
    assert np.array_equal(image.data[0], GRAY > 99)


def test_palette_becomes_rgb():
    indexed = Pillow.fromarray(RGB).quantize(16)
    image = read_image(encode(indexed))
    assert np.array_equal(image.data, np.asarray(indexed.convert("RGB")).transpose(2, 0, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_png_keeps_all_bits(channels):
    pixels = np.ascontiguousarray(DEEP[..., :channels])
    image = read_image(imagecodecs.png_encode(pixels.squeeze()))
    assert image.dtype == np.uint16
    assert np.array_equal(image.data, pixels.transpose(2, 0, 1))


def test_opaque_alpha_is_dropped():
    image = read_image(encode(Pillow.fromarray(RGB).convert("RGBA")))
    assert np.array_equal(image.data, RGB.transpose(2, 0, 1))
    deep = np.dstack([DEEP, np.full(DEEP.shape[:2], 65535, np.uint16)])
    assert np.array_equal(read_image(imagecodecs.png_encode(deep)).data, DEEP.transpose(2, 0, 1))


def test_transparency_is_refused_unless_channels_are_chosen():
    pixels = np.dstack([RGB, GRAY])
    encoded = encode(Pillow.fromarray(pixels))
    with pytest.raises(InputError, match=r"partly transparent.*channels=\(0, 1, 2\)"):
        read_image(encoded)
    chosen = read_image(encoded, selection=Selection(channels=(2, 0)))
    assert np.array_equal(chosen.data, RGB.transpose(2, 0, 1)[[2, 0]])


@pytest.mark.parametrize(
    ("image", "key"),
    [
        (Pillow.fromarray(GRAY), int(GRAY[3, 4])),
        (Pillow.fromarray(RGB), tuple(RGB[3, 4].tolist())),
        (Pillow.fromarray(RGB).quantize(16), 3),
        (Pillow.fromarray(DEEP[..., 0]), int(DEEP[3, 4, 0])),
    ],
    ids=["gray", "rgb", "palette", "16 bit"],
)
def test_a_transparent_color_is_transparency(image, key):
    with pytest.raises(InputError, match="partly transparent"):
        read_image(encode(image, transparency=key))


def test_jpeg():
    encoded = encode(Pillow.fromarray(RGB), "JPEG", quality=95)
    image = read_image(encoded)
    expected = np.asarray(Pillow.open(io.BytesIO(encoded))).transpose(2, 0, 1)
    assert image.format == "JPEG"
    assert np.array_equal(image.data, expected)
    assert read_image(encode(Pillow.fromarray(GRAY), "JPEG")).shape == (1, 20, 30)


def test_cmyk_is_refused():
    encoded = encode(Pillow.fromarray(RGB).convert("CMYK"), "JPEG")
    with pytest.raises(UnsupportedFormatError, match="JPEG of type CMYK; save it as gray or RGB"):
        read_image(encoded)


def test_animation_is_refused():
    frames = [Pillow.fromarray(GRAY), Pillow.fromarray(255 - GRAY)]
    encoded = encode(frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(UnsupportedFormatError, match="is an animation"):
        read_image(encoded)


@pytest.mark.parametrize("keep", [12, 20, 40, 300, -30])
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_truncated(form, keep):
    with pytest.raises(DecodeError, match=f"cut cannot be read as {form}: .*damaged or incomplete"):
        read_image(encode(Pillow.fromarray(RGB), form)[:keep], name="cut")


def test_truncated_16_bit_png():
    with pytest.raises(DecodeError, match="cannot be read as PNG"):
        read_image(imagecodecs.png_encode(DEEP)[:-400])


def test_damaged_pixels():
    encoded = bytearray(encode(Pillow.fromarray(GRAY)))
    encoded[100] ^= 255
    with pytest.raises(DecodeError, match="cannot be read as PNG: broken data stream"):
        read_image(bytes(encoded))


def test_lying_header_is_refused_before_decoding():
    with pytest.raises(LimitExceededError, match=r"3,600,000,000 pixels per plane.*max_pixels"):
        read_image(lying_png(60_000, 60_000))
    with pytest.raises(LimitExceededError, match=r"decoded bytes per stored byte.*max_ratio"):
        read_image(lying_png(13_000, 13_000))
    with pytest.raises(LimitExceededError, match=r"600 pixels per plane, at most 500"):
        read_image(encode(Pillow.fromarray(GRAY)), limits=DecodeLimits(max_pixels=500))


def test_no_pixels():
    with pytest.raises(DecodeError, match=r"cannot be read as PNG|it has no pixels"):
        read_image(lying_png(0, 10))
