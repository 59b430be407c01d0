"""``df2serve demo``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]

_MEMBERS = 3
_ORDINARY = 4
_FIRST_SEED = 1000


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of everything that it makes.")
    ] = Path("df2serve-demo"),
) -> None:
    """Walk the whole path on generated images: ensemble, predictions, review list."""
    from df2serve.artifact import load_ensemble
    from df2serve.cli.predict import predict
    from df2serve.cli.rank import rank
    from df2serve.testing import fitted_ensemble

    ensemble, images, results = output / "ensemble", output / "images", output / "results"
    if ensemble.exists():
        opened = load_ensemble(ensemble)
    else:
        _step(f"fitting {_MEMBERS} small networks to generated cells, one per fold")
        started = time.perf_counter()
        opened = fitted_ensemble(ensemble, members=_MEMBERS)
        typer.echo(f"{len(opened)} members in {time.perf_counter() - started:.0f} s: {ensemble}")
    _step("generating images that the networks never saw, ordinary ones and odd ones")
    _generate(images)
    _step(f"df2serve predict {ensemble} {images} -o {results} --resume")
    predict(ensemble, [images], results, resume=True)
    _step(f"df2serve rank {results}")
    rank(results)


def _step(title: str) -> None:
    typer.secho(f"\n> {title}", bold=True)


def _generate(folder: Path) -> None:
    """Write images as ImageJ TIFF with their pixel size."""
    import tifffile

    from df2serve.testing import FITTED_SCENE, generate_cells, generate_ood
    from df2serve.testing.cells import OOD_KINDS

    scene = FITTED_SCENE
    samples = {
        f"ordinary-{i + 1}": generate_cells(scene, _FIRST_SEED + i) for i in range(_ORDINARY)
    }
    for i, kind in enumerate(OOD_KINDS):
        samples[kind] = generate_ood(kind, scene, _FIRST_SEED + _ORDINARY + i)
    folder.mkdir(parents=True, exist_ok=True)
    for name, sample in samples.items():
        tifffile.imwrite(
            folder / f"{name}.tif",
            sample.image[0],
            imagej=True,
            resolution=(1 / scene.pixel_size_um, 1 / scene.pixel_size_um),
            metadata={"axes": "YX", "unit": "um"},
        )
    typer.echo(f"{len(samples)} images: {folder}")
