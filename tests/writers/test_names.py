"""One name per source, whatever file system."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from df2serve.errors import InputError
from df2serve.writers._names import assign_names, relative_names

PART = st.text(alphabet="aA1.é ", min_size=1, max_size=4).filter(lambda s: s.strip(". ") != "")
SUFFIX = st.sampled_from(["", ".tif", ".TIF", ".png", ".ome.tif", ".tif.png", ".png.tif"])
SOURCE = st.builds(
    lambda parts, suffix: "/".join(parts) + suffix, st.lists(PART, min_size=1, max_size=2), SUFFIX
)


@given(st.lists(SOURCE, unique=True, max_size=8), st.integers(0, 8))
def test_no_two_sources_share_a_name(sources: list[str], first: int) -> None:
    """Also not with results of an earlier run, and not on file systems that ignore case."""
    earlier = assign_names(sources[:first], {})
    names = assign_names(sources, earlier)
    assert list(names) == sources
    assert len({name.casefold() for name in names.values()}) == len(sources)
    assert earlier.items() <= names.items()


def test_names_are_short_where_they_can_be() -> None:
    sources = ["a.ome.tif", "b.zarr", "c.png", "c.tif", "d/c.tif", "E.png", "e.tif"]
    assert list(assign_names(sources, {}).values()) == [
        "a", "b", "c.png", "c.tif", "d/c", "E.png", "e.tif",
    ]  # fmt: skip


@pytest.mark.parametrize("source", ["../a.tif", "/a.tif", "b/../../a.tif"])
def test_no_name_leads_out_of_the_folder(source: str) -> None:
    with pytest.raises(InputError, match="expected a path inside of a folder"):
        assign_names([source], {})


def test_sources_are_called_by_their_place_below_the_common_folder(tmp_path: Path) -> None:
    paths = [tmp_path / "x" / "1.tif", tmp_path / "y" / "1.tif"]
    assert list(relative_names(paths).values()) == ["x/1.tif", "y/1.tif"]
    assert list(relative_names(paths[:1]).values()) == ["1.tif"]
    odd = tmp_path / b"\xff.tif".decode(errors="surrogateescape")
    assert list(relative_names([odd]).values()) == ["\\udcff.tif"]
