"""The page on checks lists the rules as they are."""

from pathlib import Path

from df2serve.export.checks.document import describe_rules

PAGE = Path(__file__).parents[2] / "docs/check.md"


def test_the_page_lists_every_rule() -> None:
    """If it does not, put the output of describe_rules below the marker."""
    _, _, listed = PAGE.read_text(encoding="utf-8").partition("<!-- rules -->\n\n")
    assert listed == describe_rules()
