"""What people say of an ensemble."""

from pathlib import Path

import pytest

from df2serve.artifact import Ensemble
from df2serve.errors import ConfigError, ExportError, SourceNotFoundError
from df2serve.export import Card, load_card


def test_all_that_is_missing_is_listed(two_classes: Ensemble) -> None:
    with pytest.raises(ExportError, match=r"authors .*; license .*; description"):
        Card().complete(two_classes)


def test_options_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_text("authors: [{name: A}]\nlicense: MIT\ntags: [nuclei]\n")
    card = load_card(path, authors=["Ada", "Grace"], license_id="CC0-1.0", description="Nuclei.")
    assert [person.name for person in card.authors] == ["Ada", "Grace"]
    assert (card.license, card.tags) == ("CC0-1.0", ("nuclei",))
    assert card.description == "Nuclei."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("authors: [{nam: A}]\ncolor: red", r"authors.0.name.*authors.0.nam.*color"),
        ("maintainers: [{name: A}]", "every maintainer needs github_user"),
        ("cite: [{text: a paper}]", "needs doi or url"),
        ("authors: [{name: A/B}]", "authors.0.name"),
        ("- a list", "holds a list"),
        ("a: [", "not YAML"),
    ],
)
def test_malformed_cards(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        load_card(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="no card"):
        load_card(tmp_path / "card.yaml")
