"""Every code block of the documents runs, or says why not.

The blocks of one document run in order in one empty folder; its Python blocks share their names.
`<!-- not run: REASON -->` directly above a block excludes it.
"""

import os
import re
import socket
import subprocess
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
SLOW = {"fiji.md", "zoo.md"}
"""Documents whose blocks write and check whole packages."""
PORT = "3199"
"""Of servers in documents; tests put a free one in its place."""
RUN = {"python", "bash", "console"}
SHOWN = {"dockerfile", "http", "json", "mermaid", "text", "toml", "xml", "yaml"}
FENCE = re.compile(
    r"(?:^[ ]*<!--\ not\ run:(?P<reason>.*?)-->\n)?"
    r"^(?P<indent>[ ]*)(?P<fence>`{3,}|~{3,})(?P<language>[^\n`]*)\n"
    r"(?P<code>.*?)"
    r"^(?P=indent)(?P=fence)[ ]*$",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: Path
    line: int
    """1-based line of the first line of code."""
    language: str
    code: str
    reason: str | None
    """Why it is not run; None if it is."""

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"


def read_blocks(document: Path) -> list[Block]:
    """Fenced blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(
            document,
            line=text.count("\n", 0, match.start("code")) + 1,
            language=match["language"].strip(),
            code=re.sub(f"^{match['indent']}", "", match["code"], flags=re.MULTILINE),
            reason=match["reason"],
        )
        for match in FENCE.finditer(text)
    ]


def commands(block: Block) -> str:
    """What a person would type: all of a bash block, the lines after `$` or `>` of a console."""
    if block.language == "bash":
        return block.code
    return "\n".join(line[2:] for line in block.code.splitlines() if line.startswith(("$ ", "> ")))


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_block(block: Block, names: dict[str, object], folder: Path) -> None:
    """Run a block in the current folder."""
    if block.language == "python":
        # blank lines before it: a traceback shows the line of the document
        source = "\n" * (block.line - 1) + block.code
        exec(compile(source, str(block.document), "exec"), names)
        return
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    command = ["bash", "-euo", "pipefail", "-c", commands(block)]
    environment = os.environ | {"PATH": path}
    result = subprocess.run(command, env=environment, cwd=folder, check=False)
    assert result.returncode == 0, f"{block} failed with exit code {result.returncode}"


EXCLUDED = [
    (block, block.reason.strip())
    for document in DOCUMENTS
    for block in read_blocks(document)
    if block.reason is not None
]


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(path, id=path.name, marks=[pytest.mark.slow] if path.name in SLOW else [])
        for path in DOCUMENTS
    ],
)
def test_blocks_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    port = free_port()
    for block in read_blocks(document):
        if block.language in RUN and block.reason is None:
            code = block.code.replace(PORT, port)
            run_block(replace(block, code=code), names, tmp_path)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_is_known(document: Path) -> None:
    """No block escapes by an unknown language or by a fence that is not closed."""
    blocks = read_blocks(document)
    assert [str(block) for block in blocks if block.language not in RUN | SHOWN] == []
    fences = re.findall(r"^ *(?:```|~~~)", document.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len(blocks)


@pytest.mark.parametrize(("block", "reason"), EXCLUDED, ids=str)
def test_excluded_block(block: Block, reason: str) -> None:
    """The closing lines of pytest list the exclusions, because each is a skipped test."""
    assert reason, f"{block} is excluded without a reason"
    pytest.skip(f"{block} is not run: {reason}")


EXAMPLE = """\
```python
x = 1
```
<!-- not run: takes a microscope -->
```bash
exit 1
```
- a list
  ```console
  $ echo $((40 + 2)) \\
  >   > answer.txt
  42
  ```

```python
from pathlib import Path
x += int(Path("answer.txt").read_text())
```
"""


def test_blocks_are_read_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "example.md"
    document.write_text(EXAMPLE)
    blocks = read_blocks(document)
    assert [block.line for block in blocks] == [2, 6, 10, 16]
    assert [block.reason for block in blocks] == [None, " takes a microscope ", None, None]

    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        if block.reason is None:
            run_block(block, names, tmp_path)
    assert names["x"] == 43
    with pytest.raises(AssertionError, match=r"example\.md:6 failed with exit code 1"):
        run_block(blocks[1], names, tmp_path)
