"""A whole ensemble as one PyTorch module: raw intensities in, maps out.

Members, test-time views, normalization, tiling, blending, uncertainty, mask and, where members give
one, the distance to the boundary of objects, as df2serve computes them. This file imports nothing
but PyTorch: packages carry its text as their architecture, TorchScript compiles it, and the ONNX
exporter traces it. Axes are (N, C, Y, X) and (N, K, Y, X).
"""

from typing import Dict, List, Optional, Tuple  # noqa: UP035 - what TorchScript of PyTorch 2.0 knows

import torch
from torch import Tensor, nn


class Normalization(nn.Module):
    """Intensities to network input: ``(x - offset) / scale`` per channel."""

    offset: Tensor
    scale: Tensor

    def __init__(self, kind: str, channels: int, low: float = 0.0, high: float = 100.0) -> None:
        """Prepare.

        Args:
            kind: ``constant`` takes offset and scale from the state dict, ``image`` mean and
                standard deviation of each image, ``percentile`` two percentiles of each image.
            channels: C.
            low: percentile that becomes 0.
            high: percentile that becomes 1.
        """
        super().__init__()
        self.kind = kind
        self.low = low / 100
        self.high = high / 100
        self.register_buffer("offset", torch.zeros(1, channels, 1, 1))
        self.register_buffer("scale", torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return network input; channels without contrast become 0."""
        x = x.to(torch.float32)
        if self.kind == "image":
            values = x.to(torch.float64)
            offset = values.mean([2, 3], keepdim=True)
            scale = (values - offset).square().mean([2, 3], keepdim=True).sqrt()
        elif self.kind == "percentile":
            ordered = torch.sort(x.flatten(2), dim=2)[0]
            offset = _quantile(ordered, self.low)
            scale = _quantile(ordered, self.high) - offset
        else:
            return (x - self.offset) / self.scale
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return (x - offset.to(torch.float32)) / scale.to(torch.float32)


class Recorded(nn.Module):
    """Base of networks that are written down as a list of operations on named tensors."""

    def __init__(self, tensors: List[Tuple[str, List[int], torch.dtype, bool]]) -> None:  # noqa: UP006
        """Create tensors of names, shapes and types, as parameters or buffers."""
        super().__init__()
        for name, shape, dtype, is_parameter in tensors:
            *path, last = name.split(".")
            place: nn.Module = self
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            tensor = torch.zeros(shape, dtype=dtype)
            if is_parameter:
                place.register_parameter(last, nn.Parameter(tensor))
            else:
                place.register_buffer(last, tensor)

    def tensors(self) -> Dict[str, Tensor]:  # noqa: UP006
        """Return parameters and buffers by name."""
        found: Dict[str, Tensor] = dict(self.named_buffers())  # noqa: UP006
        found.update(self.named_parameters())
        return found


class Pool(nn.Module):
    """All members under all views of a tile: moments of their class probabilities."""

    def __init__(
        self,
        members: List[nn.Module],  # noqa: UP006
        classes: int,
        views: int,
        *,
        distance: bool,
    ) -> None:
        """Prepare.

        Args:
            members: networks from tiles (N, C, Y, X) to logits (N, K, Y, X), and the logit of the
                distance behind them where there is one.
            classes: K.
            views: 1, 4 or 8 views of each tile.
            distance: whether networks give a distance.
        """
        super().__init__()
        self.members = nn.ModuleList(members)
        self.classes = classes
        self.views = views
        self.maps = classes + int(distance)

    def forward(self, tile: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        """Return the mean of all maps, and that of the sum of squared probabilities (N, 1, Y, X).

        Maps are K class probabilities, and the distance behind them where there is one.
        """
        total = torch.zeros_like(tile[:, :1])
        squares = torch.zeros_like(total)
        for member in self.members:
            for view in range(self.views):
                logits = _invert_view(member(_apply_view(tile, view)), view)
                probs = torch.softmax(logits[:, : self.classes], dim=1)
                maps = probs
                if self.maps > self.classes:
                    distance = torch.sigmoid(logits[:, self.classes :])
                    maps = torch.cat([probs, distance], dim=1)
                total = total + maps
                squares = squares + probs.square().sum(dim=1, keepdim=True)
        count = len(self.members) * self.views
        return total / count, squares / count


class Whole(nn.Module):
    """The whole image as one tile, mirrored to a multiple of what the networks need."""

    def __init__(self, pool: Pool, normalization: Normalization, multiple: int) -> None:
        """Prepare; ``multiple`` is what rows and columns of a tile have to be multiples of."""
        super().__init__()
        self.pool = pool
        self.normalization = normalization
        self.multiple = multiple

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        """Return the moments of an image of any size."""
        rows, columns = x.shape[2], x.shape[3]
        height = (rows + self.multiple - 1) // self.multiple * self.multiple
        width = (columns + self.multiple - 1) // self.multiple * self.multiple
        mean, squares = self.pool(_mirror(self.normalization(x), height, width))
        return _crop(mean, rows, columns), _crop(squares, rows, columns)


class Windowed(nn.Module):
    """Overlapping tiles, blended with a Gaussian window."""

    row_window: Tensor
    column_window: Tensor

    def __init__(
        self,
        pool: Pool,
        normalization: Normalization,
        tile_rows: int,
        tile_columns: int,
        overlap: float,
        sigma: float,
    ) -> None:
        """Prepare.

        Args:
            pool: members.
            normalization: of the image.
            tile_rows: of a tile.
            tile_columns: of a tile.
            overlap: smallest overlap of neighboring tiles, as a share of their side.
            sigma: standard deviation of the window, as a share of the tile's side.
        """
        super().__init__()
        self.pool = pool
        self.normalization = normalization
        self.rows = tile_rows
        self.columns = tile_columns
        self.row_step = max(1, int(tile_rows * (1 - overlap)))
        self.column_step = max(1, int(tile_columns * (1 - overlap)))
        self.register_buffer("row_window", _window(tile_rows, sigma), persistent=False)
        self.register_buffer("column_window", _window(tile_columns, sigma), persistent=False)

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        """Return the moments of an image of any size."""
        rows = x.shape[2]
        columns = x.shape[3]
        height = max(rows, self.rows)
        width = max(columns, self.columns)
        image = _mirror(self.normalization(x), height, width)
        window = self.row_window[:, None] * self.column_window
        row_weight = torch.zeros([height], device=image.device)
        column_weight = torch.zeros([width], device=image.device)
        tops = _origins(height, self.rows, self.row_step)
        lefts = _origins(width, self.columns, self.column_step)
        for top in tops:
            row_weight[top : top + self.rows] += self.row_window
        for left in lefts:
            column_weight[left : left + self.columns] += self.column_window
        blended = torch.zeros(
            [image.shape[0], self.pool.maps + 1, height, width], device=image.device
        )
        for top in tops:
            for left in lefts:
                bottom = top + self.rows
                right = left + self.columns
                mean, squares = self.pool(image[:, :, top:bottom, left:right])
                blended[:, :, top:bottom, left:right] += torch.cat([mean, squares], 1) * window
        blended /= row_weight[:, None] * column_weight
        blended = _crop(blended, rows, columns)
        return blended[:, : self.pool.maps], blended[:, self.pool.maps :]


class OneOutput(nn.Module):
    """Class probabilities, total uncertainty and mask as channels of one output."""

    def __init__(self, moments: nn.Module, classes: int, factor: float, *, distance: bool) -> None:
        """Prepare; ``factor`` is what the sum of variances over the classes is multiplied by."""
        super().__init__()
        self.moments = moments
        self.classes = classes
        self.factor = factor
        self.distance = distance

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps, axes (N, K + 2, Y, X), or the distance behind them as one more."""
        mean, _ = self.moments(x)
        probs = mean[:, : self.classes]
        maps = [probs, _total(probs, self.factor), _mask(probs)]
        if self.distance:
            maps.append(mean[:, self.classes :])
        return torch.cat(maps, dim=1)


class FourOutputs(nn.Module):
    """Class probabilities, mask, uncertainty and the image's score as outputs of their own."""

    def __init__(self, moments: nn.Module, factor: float) -> None:
        """Prepare; ``factor`` is what the sum of variances over the classes is multiplied by."""
        super().__init__()
        self.moments = moments
        self.factor = factor

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
        """Return probabilities, mask, total and epistemic uncertainty, and U per image (N, 1)."""
        mean, squares = self.moments(x)
        return _outputs(mean, squares, self.factor)


class FiveOutputs(nn.Module):
    """As four outputs, and the distance to the boundary of objects."""

    def __init__(self, moments: nn.Module, classes: int, factor: float) -> None:
        """Prepare; ``factor`` is what the sum of variances over the classes is multiplied by."""
        super().__init__()
        self.moments = moments
        self.classes = classes
        self.factor = factor

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
        """Return probabilities, mask, uncertainties, U, and the distance (N, 1, Y, X)."""
        mean, squares = self.moments(x)
        probs, mask, uncertainty, score = _outputs(mean[:, : self.classes], squares, self.factor)
        return probs, mask, uncertainty, score, mean[:, self.classes :]


def build(
    members: List[nn.Module],  # noqa: UP006
    *,
    variant: str,
    channels: int,
    classes: int,
    views: int,
    tile_rows: int,
    tile_columns: int,
    overlap: float,
    sigma: float,
    factor: float,
    distance: bool,
    normalization: str,
    low: float = 0.0,
    high: float = 100.0,
    multiple: Optional[int] = None,  # noqa: UP045
) -> nn.Module:
    """Put an ensemble together; its constants come with the state dict.

    Args:
        members: networks from tiles to logits.
        variant: ``fiji`` for one output, ``full`` for several.
        channels: C.
        classes: K, background included.
        views: test-time views of each tile: 1, 4 or 8.
        tile_rows: rows of a tile.
        tile_columns: columns of a tile.
        overlap: smallest overlap of neighboring tiles, as a share of their side.
        sigma: standard deviation of the blending window, as a share of the tile's side.
        factor: what the sum of variances over the classes is multiplied by.
        distance: whether members give the distance to the boundary of objects as well.
        normalization: ``constant``, ``image`` or ``percentile``.
        low: percentile that becomes 0.
        high: percentile that becomes 1.
        multiple: take the whole image as one tile with sides that are multiples of this.
    """
    pool = Pool(members, classes, views, distance=distance)
    affine = Normalization(normalization, channels, low, high)
    moments: nn.Module = (
        Windowed(pool, affine, tile_rows, tile_columns, overlap, sigma)
        if multiple is None
        else Whole(pool, affine, multiple)
    )
    whole: nn.Module
    if variant == "fiji":
        whole = OneOutput(moments, classes, factor, distance=distance)
    elif distance:
        whole = FiveOutputs(moments, classes, factor)
    else:
        whole = FourOutputs(moments, factor)
    return whole.eval()


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """Return a quantile of ascending values (N, C, pixels), interpolated between two ranks."""
    ranks = torch.arange(ordered.shape[2], device=ordered.device)
    last = ranks[-1:]
    rank = last.to(torch.float64) * share
    below = rank.floor()
    lower = ordered.index_select(2, below.to(torch.int64)).to(torch.float64)
    upper = ordered.index_select(2, torch.minimum(below.to(torch.int64) + 1, last))
    return (lower + (upper.to(torch.float64) - lower) * (rank - below)).unsqueeze(3)


def _apply_view(tile: Tensor, view: int) -> Tensor:
    """Return a view: bit 2 transposes, then bit 0 reverses rows and bit 1 columns."""
    if view >= 4:
        tile = tile.transpose(2, 3)
    return _flip(tile, view % 4)


def _invert_view(maps: Tensor, view: int) -> Tensor:
    """Bring maps of a view back to the tile's own orientation."""
    maps = _flip(maps, view % 4)
    return maps.transpose(2, 3) if view >= 4 else maps


def _flip(maps: Tensor, code: int) -> Tensor:
    if code == 1:
        return torch.flip(maps, [2])
    if code == 2:
        return torch.flip(maps, [3])
    if code == 3:
        return torch.flip(maps, [2, 3])
    return maps


def _window(side: int, sigma: float) -> Tensor:
    """Return the Gaussian window along one axis, with maximum 1."""
    offsets = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    window = torch.exp(-(offsets**2) / (2 * (sigma * side) ** 2))
    return (window / window.max()).to(torch.float32)


def _origins(length: int, side: int, step: int) -> List[int]:  # noqa: UP006
    """Spread as few tiles as the overlap allows evenly from edge to edge."""
    if length <= side:
        return [0]
    gaps = -(-(length - side) // step)
    gap = float(length - side) / float(gaps)
    return [int(round(float(index) * gap)) for index in range(gaps + 1)]  # noqa: RUF046


def _mirror(image: Tensor, height: int, width: int) -> Tensor:
    """Center an image in a larger one, mirrored with the edge pixel repeated."""
    rows = _mirrored(image.shape[2], height, image)
    columns = _mirrored(image.shape[3], width, image)
    return image.index_select(2, rows).index_select(3, columns)


def _mirrored(length: int, side: int, image: Tensor) -> Tensor:
    positions = torch.arange(side, device=image.device) - (side - length) // 2
    folded = positions.remainder(2 * length)
    return torch.minimum(folded, 2 * length - 1 - folded)


def _crop(maps: Tensor, rows: int, columns: int) -> Tensor:
    """Undo :func:`_mirror`."""
    top = (maps.shape[2] - rows) // 2
    left = (maps.shape[3] - columns) // 2
    return maps[:, :, top : top + rows, left : left + columns]


def _outputs(mean: Tensor, squares: Tensor, factor: float) -> Tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: UP006
    """Return probabilities, mask, total and epistemic uncertainty, and U per image (N, 1)."""
    mask = _mask(mean)
    total = _total(mean, factor)
    spread = squares - mean.square().sum(dim=1, keepdim=True)
    epistemic = factor * spread.clamp(min=0.0)
    return mean, mask, torch.cat([total, epistemic], dim=1), _score(total, mask)


def _total(mean: Tensor, factor: float) -> Tensor:
    variance = (mean * (1 - mean)).sum(dim=1, keepdim=True)
    return factor * variance.clamp(min=0.0)


def _mask(mean: Tensor) -> Tensor:
    return mean.argmax(dim=1, keepdim=True).to(torch.float32)


def _score(total: Tensor, mask: Tensor) -> Tensor:
    """Return the mean uncertainty of the foreground, or its largest value where there is none."""
    foreground = (mask > 0).to(torch.float32)
    pixels = foreground.sum([1, 2, 3])
    mean = (total * foreground).sum([1, 2, 3]) / pixels.clamp(min=1.0)
    return torch.where(pixels > 0, mean, total.amax([1, 2, 3])).unsqueeze(1)
