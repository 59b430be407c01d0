"""Lengths to micrometers."""

from __future__ import annotations

from df2serve.io.image import PixelSize

__all__ = ["pixel_size"]

_FACTORS = {
    "nm": 1e-3, "nanometer": 1e-3, "nanometre": 1e-3,
    "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
    "micrometre": 1.0,
    "mm": 1e3, "millimeter": 1e3, "millimetre": 1e3,
    "cm": 1e4, "centimeter": 1e4, "centimetre": 1e4,
    "m": 1e6, "meter": 1e6, "metre": 1e6,
    "å": 1e-4, "angstrom": 1e-4,
}  # fmt: skip
_PLAUSIBLE_UM = (1e-6, 1e6)
"""What a pixel can measure; TIFF holds little more as a resolution."""


def pixel_size(y: object, x: object, y_unit: str, x_unit: str) -> PixelSize | None:
    """Return a pixel size, or None where a length is missing or no pixel's, or its unit is none.

    Example:
        >>> pixel_size(250, "0.5", "nm", "um")
        PixelSize(y_um=0.25, x_um=0.5)
        >>> pixel_size(1, 1, "pixel", "pixel")
    """
    y_um, x_um = _micrometers(y, y_unit), _micrometers(x, x_unit)
    return None if y_um is None or x_um is None else PixelSize(y_um=y_um, x_um=x_um)


def _micrometers(value: object, unit: str) -> float | None:
    factor = _FACTORS.get(unit.strip().lower())
    if factor is None or not isinstance(value, str | int | float):
        return None
    try:
        length = float(value) * factor
    except ValueError:
        return None
    low, high = _PLAUSIBLE_UM
    return length if low <= length <= high else None
