"""Inputs and outputs of a description, whatever the format version, without believing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = [
    "Axis",
    "DataDependent",
    "Fixed",
    "Operation",
    "Parametrized",
    "Reference",
    "Size",
    "Tensor",
    "list_at",
    "mapping_at",
    "read_tensors",
]

_KINDS = {"b": "batch", "c": "channel", "i": "index", "t": "time", "x": "space", "y": "space"}
_KINDS["z"] = "space"


@dataclass(frozen=True)
class Fixed:
    """One size and no other."""

    size: int


@dataclass(frozen=True)
class Parametrized:
    """``min + n * step`` for any n >= 0."""

    min: int
    step: int


@dataclass(frozen=True)
class Reference:
    """The size of an axis of another tensor, plus an offset."""

    tensor: str
    axis: str
    offset: float
    scale: float
    """1 in format 0.5, where scales are those of the axes."""


@dataclass(frozen=True)
class DataDependent:
    """Known only after a run."""


Size: TypeAlias = Fixed | Parametrized | Reference | DataDependent | None


@dataclass(frozen=True)
class Axis:
    """An axis of a tensor."""

    place: str
    kind: str
    """``batch``, ``channel``, ``index``, ``time``, ``space``, or what else is written there."""
    id: str | None
    size: Size
    halo: int
    scale: float
    unit: str | None
    channel_names: tuple[str, ...] | None

    @property
    def letter(self) -> str:
        """``b``, ``c``, ``i``, or the name of the axis."""
        return self.kind[:1] if self.kind in {"batch", "channel", "index"} else self.id or "?"


@dataclass(frozen=True)
class Operation:
    """A step of preprocessing or postprocessing."""

    place: str
    id: str
    kwargs: Mapping[str, Any]


@dataclass(frozen=True)
class Tensor:
    """An input or an output."""

    place: str
    id: str
    axes: tuple[Axis, ...]
    dtype: str | None
    operations: tuple[Operation, ...]
    test: object
    """What is given as test tensor."""
    test_place: str
    sample: object

    @property
    def order(self) -> str:
        """One letter per axis, such as ``bcyx``."""
        return "".join(axis.letter for axis in self.axes)

    @property
    def channels(self) -> int | None:
        """Number of channels, if it is known."""
        for axis in self.axes:
            if axis.kind == "channel":
                match axis:
                    case Axis(channel_names=names) if names:
                        return len(names)
                    case Axis(size=Fixed(size=size)):
                        return size
        return None

    def spatial(self) -> tuple[Axis, ...]:
        """Return the axes y and x, and z where there is one."""
        return tuple(axis for axis in self.axes if axis.kind == "space")


def mapping_at(value: object, *keys: str) -> Mapping[str, Any]:
    """Return the fields at a path; none if there are no fields."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def list_at(value: object, key: str) -> Sequence[Any]:
    """Return the list at a key; empty if it is no list."""
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, list) else []


def read_tensors(rdf: Mapping[str, Any], side: str) -> tuple[Tensor, ...]:
    """Return the tensors of a side, ``inputs`` or ``outputs``."""
    return tuple(
        _tensor(rdf, fields, side, index)
        for index, fields in enumerate(list_at(rdf, side))
        if isinstance(fields, Mapping)
    )


def _tensor(rdf: Mapping[str, Any], fields: Mapping[str, Any], side: str, index: int) -> Tensor:
    place, old = f"{side}[{index}]", isinstance(fields.get("axes"), str)
    tests, samples = (list_at(rdf, f"{kind}_{side}") for kind in ("test", "sample"))
    data = fields.get("data")
    first = data[0] if isinstance(data, list) and data else data
    return Tensor(
        place=place,
        id=str(fields.get("id" if not old else "name", "")),
        axes=tuple(_old_axes(fields, place) if old else _axes(fields, place)),
        dtype=_text(fields.get("data_type")) if old else _text(mapping_at(first).get("type")),
        operations=tuple(_operations(fields, place, "name" if old else "id")),
        test=_item(tests, index) if old else fields.get("test_tensor"),
        test_place=f"test_{side}[{index}]" if old else f"{place}.test_tensor",
        sample=_item(samples, index) if old else fields.get("sample_tensor"),
    )


def _operations(fields: Mapping[str, Any], place: str, key: str) -> Iterator[Operation]:
    for side in ("preprocessing", "postprocessing"):
        for index, item in enumerate(list_at(fields, side)):
            if isinstance(item, Mapping):
                name = str(item.get(key, item.get("id", item.get("name", ""))))
                yield Operation(f"{place}.{side}[{index}]", name, mapping_at(item, "kwargs"))


# -- format 0.5 ---------------------------------------------------------------------------------


def _axes(fields: Mapping[str, Any], place: str) -> Iterator[Axis]:
    for index, item in enumerate(list_at(fields, "axes")):
        if not isinstance(item, Mapping):
            continue
        names = item.get("channel_names")
        yield Axis(
            place=f"{place}.axes[{index}]",
            kind=_text(item.get("type")) or "",
            id=_text(item.get("id")),
            size=_size(item.get("size")),
            halo=_integer(item.get("halo")) or 0,
            scale=_number(item.get("scale"), 1.0),
            unit=_text(item.get("unit")),
            channel_names=tuple(map(str, names)) if isinstance(names, list) else None,
        )


def _size(size: object) -> Size:
    if isinstance(size, bool):
        return None
    if isinstance(size, int):
        return Fixed(size)
    if not isinstance(size, Mapping):
        return None
    if "tensor_id" in size or "axis_id" in size:
        tensor, axis = str(size.get("tensor_id", "")), str(size.get("axis_id", ""))
        return Reference(tensor, axis, _number(size.get("offset"), 0.0), 1.0)
    if "step" in size:
        return Parametrized(_integer(size.get("min")) or 0, _integer(size["step"]) or 0)
    return DataDependent()


# -- format 0.4 ---------------------------------------------------------------------------------


def _old_axes(fields: Mapping[str, Any], place: str) -> Iterator[Axis]:
    letters, halo = str(fields["axes"]), list_at(fields, "halo")
    for index, letter in enumerate(letters):
        yield Axis(
            place=f"{place}.axes[{index}]",
            kind=_KINDS.get(letter, letter),
            id=letter,
            size=_old_size(fields.get("shape"), letter, index),
            halo=_integer(_item(halo, index)) or 0,
            scale=1.0,
            unit=None,
            channel_names=None,
        )


def _old_size(shape: object, letter: str, index: int) -> Size:
    if isinstance(shape, list):
        size = _integer(_item(shape, index))
        return None if size is None else Fixed(size)
    if not isinstance(shape, Mapping):
        return None
    if "reference_tensor" not in shape:
        least = _integer(_item(list_at(shape, "min"), index)) or 0
        step = _integer(_item(list_at(shape, "step"), index)) or 0
        return Parametrized(least, step) if step else Fixed(least)
    # sizes here are scale * reference + 2 * offset, and a scale of 0 makes a new axis
    scale = _number(_item(list_at(shape, "scale"), index), 0.0)
    offset = 2 * _number(_item(list_at(shape, "offset"), index), 0.0)
    if not scale:
        return Fixed(round(offset))
    return Reference(str(shape["reference_tensor"]), letter, offset, scale)


# -- values that may be anything ----------------------------------------------------------------


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: object, default: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return default
    return float(value) if abs(value) < 1e18 else default


def _item(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else None
