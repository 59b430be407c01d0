"""``df2serve demo``."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    import click

    from df2serve.testing import CellSample

__all__ = ["demo"]

_NEEDED = ("gt", "train", "evaluate")
"""Verbs that the training package adds."""
_EXPERTS = ("generous", "hasty", "tight")
_TRAINING_IMAGES = 18
_FIRST_SEEDS = {"training": 10_000, "test": 20_000, "new": 30_000}


def demo(
    context: typer.Context,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of everything that it makes.")
    ] = Path("df2serve-demo"),
) -> None:
    """Walk the whole path on generated images, from experts' masks to a review list."""
    from df2serve.errors import BackendUnavailableError

    program = cast("click.Group", context.find_root().command)
    if missing := [verb for verb in _NEEDED if verb not in program.commands]:
        message = f"no verb {', '.join(missing)}; pip install 'df2serve[training]' for the demo"
        raise BackendUnavailableError(message)
    training, test, ensemble = output / "training", output / "test", output / "ensemble"
    if not ensemble.exists():
        _say(f"images of cells, and the masks that {len(_EXPERTS)} simulated experts draw of them")
        _generate(training, ordinary=_TRAINING_IMAGES, odd=0)
        _generate(test, ordinary=6, odd=2)
    _generate(output / "new", ordinary=4, odd=1)
    steps = (
        (training / "gt", ["gt", training / "experts", "-o", training / "gt"]),
        (ensemble, ["train", training / "images", training / "gt/masks", "-o", ensemble,
                    "--recipe", "demo", "--class-names", "background,cell"]),
        (test / "gt", ["gt", test / "experts", "-o", test / "gt"]),
        (output / "evaluation", ["evaluate", ensemble, test / "images", test / "gt/masks",
                                 "--experts", test / "experts", "-o", output / "evaluation",
                                 "--calibrate"]),
        (None, ["predict", ensemble, output / "new/images", "-o", output / "results", "--resume"]),
        (None, ["rank", output / "results"]),
        (None, ["report", output / "results", "--evaluation", output / "evaluation"]),
    )  # fmt: skip
    for made, words in steps:
        arguments = [str(word) for word in words]
        _say(f"df2serve {shlex.join(arguments)}")
        if made is not None and made.exists():
            typer.echo(f"there already: {made}")
            continue
        started = time.perf_counter()
        program.main(arguments, prog_name="df2serve", standalone_mode=False)
        typer.echo(f"({time.perf_counter() - started:.0f} s)")


def _say(title: str) -> None:
    typer.secho(f"\n> {title}", bold=True)


def _generate(folder: Path, *, ordinary: int, odd: int) -> None:
    """Write ordinary images, some of each odd kind, and the experts' masks of all of them."""
    import tifffile

    from df2serve.testing import FITTED_SCENE, simulate_experts

    seed = _FIRST_SEEDS[folder.name]
    size = FITTED_SCENE.pixel_size_um
    for place in ("images", *(f"experts/{expert}" for expert in _EXPERTS)):
        (folder / place).mkdir(parents=True, exist_ok=True)
    samples = list(_samples(seed, ordinary, odd))
    for number, (name, sample) in enumerate(samples):
        tifffile.imwrite(
            folder / "images" / f"{name}.tif", sample.image[0], imagej=True,
            resolution=(1 / size, 1 / size), metadata={"axes": "YX", "unit": "um"},
        )  # fmt: skip
        masks: dict[str, Any] = simulate_experts(sample, seed + number)
        for expert in _EXPERTS:
            tifffile.imwrite(folder / "experts" / expert / f"{name}.tif", 255 * masks[expert])
    typer.echo(f"{len(samples)} images: {folder / 'images'}")


def _samples(seed: int, ordinary: int, odd: int) -> Iterator[tuple[str, CellSample]]:
    """Yield names and images."""
    from df2serve.testing import FITTED_SCENE, generate_cells, generate_ood
    from df2serve.testing.cells import OOD_KINDS

    for i in range(ordinary):
        yield f"ordinary-{i + 1}", generate_cells(FITTED_SCENE, seed + i)
    for i, (kind, number) in enumerate(product(OOD_KINDS, range(odd))):
        yield f"{kind}-{number + 1}", generate_ood(kind, FITTED_SCENE, seed + ordinary + i)
