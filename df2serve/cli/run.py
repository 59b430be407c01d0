"""``df2serve run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from df2serve.cli._terminal import AsJson, print_json, print_table, say

if TYPE_CHECKING:
    from df2serve.export.foreign import ForeignOutput

__all__ = ["run"]


def run(
    package: Annotated[
        Path, typer.Argument(help="A bioimage.io package: zip file, folder or rdf.yaml.")
    ],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the outputs.")],
    *,
    weights: Annotated[
        str | None, typer.Option(help="Weight format; else the first that can be run.")
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="SHA256", help="Hash of code in the package that may run."),
    ] = None,
    axes: Annotated[
        str | None, typer.Option(help="Axes as stored, letters of TCZYX, where files state none.")
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help="Channels to take, in this order, such as 0,2.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a bioimage.io package of anybody, and write what it puts out."""
    import numpy as np

    from df2serve.cli.predict import selection_of, sources_of
    from df2serve.export.foreign import open_foreign
    from df2serve.files import new_folder
    from df2serve.io import read_image
    from df2serve.writers import relative_names

    sources = sources_of(images, "*", output)
    names = relative_names(sources)
    selection = selection_of(channels)
    rows = []
    with (
        open_foreign(package, weights=weights, trust=trust or ()) as opened,
        new_folder(output) as folder,
    ):
        say(f"{opened.name}: {opened.weights}, {len(sources)} images")
        read = [read_image(path, axes=axes, selection=selection) for path in sources]
        results = opened.predict([np.asarray(image.data) for image in read])
        for path, outputs in zip(sources, results, strict=True):
            for item in outputs:
                file = _write(item, folder / f"{names[path]}.{item.id}")
                rows.append(_row(names[path], item, file.relative_to(folder)))
    if as_json:
        print_json(rows)
    else:
        print_table([{key: str(value) for key, value in row.items()} for row in rows])


def _row(name: str, item: ForeignOutput, file: Path) -> dict[str, Any]:
    return {
        "image": name,
        "output": item.id,
        "axes": item.axes,
        "shape": " x ".join(map(str, item.data.shape)),
        "file": file.as_posix(),
    }


def _write(item: ForeignOutput, stem: Path) -> Path:
    """Write maps as TIFF, everything else as NPY."""
    import numpy as np

    from df2serve.writers import TiffRowWriter

    stem.parent.mkdir(parents=True, exist_ok=True)
    planes = item.data[0] if item.axes.startswith("b") and len(item.data) == 1 else item.data
    if item.axes.removeprefix("b") not in {"yx", "cyx"} or planes.ndim > 3:
        path = stem.with_name(f"{stem.name}.npy")
        np.save(path, item.data)
        return path
    path = stem.with_name(f"{stem.name}.tif")
    plain = _storable(planes)
    shown = (float(plain.min()), float(plain.max()))
    with TiffRowWriter(path, shape=plain.shape, dtype=plain.dtype, display_range=shown) as writer:
        writer.append(plain)
    return path


def _storable(planes: Any) -> Any:
    """Return the values in a type that ImageJ reads; counts beyond 16 bits become float32."""
    import numpy as np

    if planes.dtype.kind in "biu" and planes.size and planes.min() >= 0:
        for kind in (np.uint8, np.uint16):
            if planes.max() <= np.iinfo(kind).max:
                return planes.astype(kind)
    return planes.astype(np.float32)
