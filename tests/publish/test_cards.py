"""The cards of published ensembles are what `make cards` renders, and complete."""

import re
from pathlib import Path

import pytest
from PIL import Image

from df2serve.artifact import load_ensemble
from df2serve.export import load_card
from df2serve.publish import render_card

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(path.parent for path in ROOT.glob("model_cards/*/card.yaml"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_cards_are_rendered_of_their_facts(folder: Path) -> None:
    ensemble = load_ensemble(folder)
    repository = f"ORG/{folder.name}"
    rendered = render_card(ensemble, load_card(folder / "card.yaml"), repository=repository)
    assert (folder / "README.md").read_text(encoding="utf-8") == rendered.text, "run make cards"
    assert rendered.missing == ()
    assert f"`{ensemble.sha256}`" in rendered.text


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_folders_hold_facts_and_no_code(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {"README.md", "calibration.json", "card.yaml", "cover.png", "ensemble.json"}
    with Image.open(folder / "cover.png") as cover:
        assert cover.width == 2 * cover.height
    assert (folder / "cover.png").stat().st_size < 500_000


def test_the_makefile_renders_what_is_compared() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (recipe,) = re.findall(r"^cards: .*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert "--card $$folder/card.yaml" in recipe
    assert "--repository ORG/$$(basename $$folder)" in recipe
    assert FOLDERS
