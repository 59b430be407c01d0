"""Recipes as files."""

from pathlib import Path

import pytest

from df2serve.errors import ConfigError, SourceNotFoundError
from df2serve_training.recipe import Recipe, list_recipes, load_recipe


def test_recipes_of_the_package() -> None:
    assert list_recipes() == ["cpu", "deepflash2", "default", "demo", "paper"]
    recipes = {name: load_recipe(name) for name in list_recipes()}
    assert recipes["default"] == Recipe()
    assert recipes["paper"].training.loss == "ce_dice"
    assert recipes["deepflash2"].training.loss == "ce_plus_dice"
    assert recipes["deepflash2"].sampling.class_weights == "deepflash2"


def test_own_recipes_and_overrides(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("members = 2\n[training]\nsteps = 7\nseed = 3\n")
    recipe = load_recipe(path, {"training": {"seed": 4}, "folds": {"count": 3}})
    assert (recipe.num_members, recipe.training.steps, recipe.training.seed) == (2, 7, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[training]\nstep = 7", r"training\.step: Extra inputs"),
        ("[training]\nsteps = 0\nbatch_size = -1", r"training\.steps: .*; training\.batch_size"),
        ("members = 9", "9 members need as many folds, got 5"),
        ("[[training.phases]]\nshare = 0.5\nrate = 1", "the shares of the phases sum to 0.5"),
        ("[training", "is not TOML"),
    ],
)
def test_mistakes(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_no_such_recipe() -> None:
    with pytest.raises(SourceNotFoundError, match="give a TOML file or one of cpu, deepflash2"):
        load_recipe("best")
