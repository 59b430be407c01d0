"""The descriptions of the format and of the architecture say what the code does."""

import ast
import json
import pkgutil
import re
import shutil
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

import df2serve
from df2serve.artifact import (
    FEATURES,
    Ensemble,
    GoldenTensors,
    load_ensemble,
    pack_ensemble,
    with_files,
)
from df2serve.artifact.features import FeatureBankFacts
from df2serve.artifact.manifest import (
    SCHEMA_VERSION,
    Calibration,
    Manifest,
    parse_calibration,
    parse_manifest,
)
from df2serve.cli.app import _PLUGINS
from df2serve.config import PRESETS
from df2serve.errors import IntegrityError
from df2serve.inference import predict
from df2serve.testing import random_ensemble
from df2serve.testing.ensembles import random_bank

ROOT = Path(__file__).parents[2]
FORMAT = (ROOT / "docs/artifact-format.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")

Schema = dict[str, Any]
Row = tuple[str, str, str]
"""Path, type and default of a field."""


# -- the tables of fields -----------------------------------------------------------------------


def fields(model: type[BaseModel]) -> list[Row]:
    """All fields of a model and of what it holds, in order, in the words of the document."""
    schema = model.model_json_schema()
    return list(rows_of(schema, "", schema.get("$defs", {})))


def rows_of(schema: Schema, path: str, defs: Schema) -> Iterator[Row]:
    node = resolved(schema, defs)
    if "oneOf" in node:
        kinds = node["discriminator"]["mapping"]
        yield f"{path}.kind", either(kinds), "required"
        for kind, reference in kinds.items():
            variant = defs[reference.rpartition("/")[2]]
            properties = {k: v for k, v in variant["properties"].items() if k != "kind"}
            yield from rows_of(variant | {"properties": properties}, f"{path}[kind={kind}]", defs)
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from rows_of(node[key], f"{path}[]", defs)
    for name, child in node.get("properties", {}).items():
        child_path = f"{path}.{name}".removeprefix(".")
        required = name in node.get("required", [])
        yield child_path, type_of(child, defs), "required" if required else default_of(child)
        yield from rows_of(child, child_path, defs)


def resolved(node: Schema, defs: Schema) -> Schema:
    """The schema behind a reference, and beside a null."""
    if "anyOf" in node:
        (node,) = (option for option in node["anyOf"] if option.get("type") != "null")
    return defs[node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def either(values: Iterable[object]) -> str:
    return " or ".join(f"`{json.dumps(value)}`" for value in values)


def default_of(node: Schema) -> str:
    default = node.get("default", {})
    for name, config in PRESETS.items():
        if default == config.model_dump(mode="json"):
            return f"preset `{name}`"
    return f"`{json.dumps(default)}`"


def type_of(schema: Schema, defs: Schema) -> str:
    node = resolved(schema, defs)
    if "anyOf" in schema:
        return f"{type_of(node, defs)} or null"
    if "const" in node or "enum" in node:
        return either(node.get("enum", [node.get("const")]))
    if "prefixItems" in node:
        return f"list of {len(node['prefixItems'])}: {type_of(node['prefixItems'][0], defs)}"
    if node.get("type") == "array":
        low, high = node.get("minItems"), node.get("maxItems")
        count = f", {low} to {high}" if high else f", {low} or more" if low else ""
        return f"list of {type_of(node['items'], defs)}{count}"
    if isinstance(node.get("additionalProperties"), dict):
        return f"map to {type_of(node['additionalProperties'], defs)}"
    if "oneOf" in node:
        return "object"
    return f"{node['type']}{bounds(node)}" if node else "any JSON"


def bounds(node: Schema) -> str:
    words = {
        "minimum": " ≥ {}",
        "exclusiveMinimum": " > {}",
        "maximum": " ≤ {}",
        "exclusiveMaximum": " < {}",
        "minLength": ", {} character or more",
        "maxLength": ", at most {} characters",
        "pattern": " `{}`",
    }
    return "".join(text.format(node[key]) for key, text in words.items() if key in node)


def described_fields(heading: str) -> list[Row]:
    found = re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \| .+ \|$", section(heading), re.MULTILINE)
    return [(path, kind, default) for path, kind, default in found]


def section(heading: str, text: str = FORMAT) -> str:
    """The part of a document under a heading of the second level."""
    _, _, rest = text.partition(f"\n## {heading}\n")
    assert rest, f"there is no heading {heading!r}"
    return rest.partition("\n## ")[0]


@pytest.mark.parametrize("model", [Manifest, Calibration, FeatureBankFacts])
def test_every_field_is_described_and_none_is_invented(model: type[BaseModel]) -> None:
    heading = {
        Manifest: "`ensemble.json`",
        Calibration: "`calibration.json`",
        FeatureBankFacts: "`features.safetensors`",
    }[model]
    assert described_fields(heading) == fields(model)


# -- examples -----------------------------------------------------------------------------------


def example(heading: str) -> bytes:
    (code,) = re.findall(r"^```json\n(.*?)^```$", section(heading), re.MULTILINE | re.DOTALL)
    return code.encode()


def test_the_example_manifest_is_valid_and_whole() -> None:
    content = example("`ensemble.json`")
    assert json.loads(parse_manifest(content).to_json()) == json.loads(content)


def test_the_example_calibration_is_valid_and_whole() -> None:
    content = example("`calibration.json`")
    assert parse_calibration(content).model_dump(mode="json") == json.loads(content)


def test_the_document_describes_the_current_version() -> None:
    assert FORMAT.startswith(f"# The ensemble folder, format {SCHEMA_VERSION}\n")


# -- files and hashes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    """An ensemble with every file that the format knows."""
    folder = tmp_path_factory.mktemp("docs") / "whole"
    bare = random_ensemble(folder, members=1, channels=1, classes=2, tile=64)
    image = np.zeros((1, 40, 50), dtype=np.uint8)
    prediction = predict(image, ensemble=bare, axes="CYX")
    golden = GoldenTensors(image=image, probs=prediction.probs, total=prediction.total)
    files = {"calibration.json": b"{}", FEATURES: random_bank(bare).to_bytes()}
    return with_files(bare, golden.to_files() | files)


def test_the_layout_shows_every_file(whole: Ensemble) -> None:
    tree = "\n".join(re.findall(r"^    .*", section("Layout"), re.MULTILINE))
    shown = set(re.findall(r"[\w/.-]+\.(?:json|safetensors|npy|npz)", tree))
    assert shown == {"ensemble.json", *whole.manifest.files}


CALLS: dict[str, Callable[[Ensemble, str], object]] = {
    "load_ensemble": lambda ensemble, _: load_ensemble(ensemble.source),
    "Ensemble.load_member": lambda ensemble, _: ensemble.load_member(0),
    "Ensemble.golden": lambda ensemble, _: ensemble.golden(),
    "Ensemble.features": lambda ensemble, _: ensemble.features(),
    "Ensemble.read": lambda ensemble, path: ensemble.read(path),
    "Ensemble.verify": lambda ensemble, _: ensemble.verify(),
    "pack_ensemble": lambda ensemble, _: pack_ensemble(ensemble, f"{ensemble.source}.zip"),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_verify_what_the_table_says(whole: Ensemble, name: str, tmp_path: Path) -> None:
    """Each file is damaged in turn: exactly the calls that are said to verify it refuse it."""
    listed = set(whole.manifest.files)
    table = re.findall(
        r"^\| (`.+?) \| (.+) \|$", section("What is verified, and when"), re.MULTILINE
    )
    (verified,) = (cell for calls, cell in table if f"`{name}`" in calls)
    every = verified in ("everything listed", "the file asked for")
    expected = listed if every else set(re.findall("`(.+?)`", verified))

    refused = set()
    for path in sorted(listed):
        copy = shutil.copytree(whole.source, tmp_path / path.replace("/", "_"))
        ensemble = load_ensemble(copy)
        content = (copy / path).read_bytes()
        (copy / path).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        try:
            CALLS[name](ensemble, path)
        except IntegrityError:
            refused.add(path)
    assert refused == expected


# -- rooms and names ----------------------------------------------------------------------------


def test_the_rooms_are_those_of_the_import_contract() -> None:
    """From the ground up, each room that exists, once; siblings in either order."""
    rooms = re.findall(r"^\| `(\w+)` \|", section("Rooms", ARCHITECTURE), re.MULTILINE)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    storeys = [re.findall(r"df2serve\.(\w+)", layer) for layer in reversed(layers)]
    storey_of = {room: number for number, rooms in enumerate(storeys) for room in rooms}
    existing = {module.name for module in pkgutil.iter_modules(df2serve.__path__)}
    assert set(rooms) == {room for room in existing if not room.startswith("_")}
    assert len(set(rooms)) == len(rooms)
    assert sorted(rooms, key=storey_of.__getitem__) == rooms


def test_the_entry_point_group_is_the_one_that_is_asked() -> None:
    assert f'[project.entry-points."{_PLUGINS}"]' in ARCHITECTURE


def defined_names() -> set[str]:
    """Modules, and what they define: classes, functions, parameters, fields and variables."""
    found = set()
    for path in (ROOT / "df2serve").rglob("*.py"):
        found.add(path.stem)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.arg(arg=name):
                    found.add(name)
                case ast.Name(id=name, ctx=ast.Store()):
                    found.add(name)
    return found


def quoted(text: str) -> set[str]:
    """What stands in backticks, outside of code blocks."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```$", "", text)))


def test_names_in_the_architecture_exist() -> None:
    """What looks like a name of ours: CamelCase or snake_case. Dotted paths: tests/packaging."""
    dotted = [item for item in quoted(ARCHITECTURE) if re.fullmatch(r"[A-Za-z]\w*(\.\w+)*", item)]
    words = {word for item in dotted for word in item.split(".")} - {"df2serve"}
    names = {word for word in words if re.search(r"[a-z0-9]_[a-z]|[A-Z]\w*[a-z]", word)}
    assert len(names) > 20
    assert names - defined_names() == set()


@pytest.mark.parametrize("text", [FORMAT, ARCHITECTURE], ids=["format", "architecture"])
def test_files_of_the_project_exist(text: str) -> None:
    """Those of an ensemble are not among them, but for CHANGELOG.md."""
    ours = re.compile(r"(?:df2serve|docs|tests|training)/|pyproject|CHANGELOG")
    paths = {item for item in quoted(text) if ours.match(item)}
    paths |= {f"docs/{target}" for target in re.findall(r"\]\(([\w-]+\.md)\)", text)}
    assert paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
