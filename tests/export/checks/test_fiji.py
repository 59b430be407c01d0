"""Every rule has an example that breaks it; the good package and all else passes."""

import copy
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tifffile
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from df2serve.config import CheckLimits
from df2serve.export.checks import Finding, Severity
from df2serve.export.checks.fiji import RULES, Subject, lint
from df2serve.export.checks.package import Package, open_package
from df2serve.export.checks.torchscript import operators_of_torch_2_0_0

Fields = dict[str, Any]
Change = Callable[[Fields, Path], object]
Variant = Callable[[Change], Path]

FIXED = 64


def findings_of(path: Path) -> list[Finding]:
    with open_package(path, CheckLimits()) as (package, refused):
        assert refused == ()
        assert package is not None
        return list(lint(Subject(package)))


def codes_of(path: Path) -> set[str]:
    return {finding.code for finding in findings_of(path)}


# -- ways to break a package --------------------------------------------------------------------


def axis(fields: Fields, side: str, index: int) -> Fields:
    return fields[side][0]["axes"][index]


def everywhere(kind: str, **changes: Any) -> Change:
    """Change every axis of a kind."""

    def change(fields: Fields, folder: Path) -> None:
        for tensor in [*fields["inputs"], *fields["outputs"]]:
            for item in tensor["axes"]:
                if item["type"] == kind:
                    item.update(changes)

    return change


def sizes(size: Any, halo: int = 16) -> Change:
    """Change the size of the input's y and x, and the output's halo."""

    def change(fields: Fields, folder: Path) -> None:
        for index in (2, 3):
            axis(fields, "inputs", index)["size"] = size
            output = axis(fields, "outputs", index)
            output.pop("halo")
            output.update({"halo": halo} if halo else {})

    return change


def steps(*operations: Fields, side: str = "inputs") -> Change:
    key = "preprocessing" if side == "inputs" else "postprocessing"
    return lambda fields, folder: fields[side][0].update({key: list(operations)})


def step(name: str, **kwargs: Any) -> Fields:
    return {"id": name, "kwargs": kwargs}


def several(*changes: Change) -> Change:
    def change(fields: Fields, folder: Path) -> None:
        for item in changes:
            item(fields, folder)

    return change


def top(**changes: Any) -> Change:
    return lambda fields, folder: fields.update(changes)


def config(**changes: Any) -> Change:
    return lambda fields, folder: fields.setdefault("config", {}).update(changes)


def without(*path: str) -> Change:
    def change(fields: Fields, folder: Path) -> None:
        target = fields
        for key in path[:-1]:
            target = target[int(key) if isinstance(target, list) else key]
        del target[path[-1]]

    return change


def data(side: str, dtype: str) -> Change:
    return lambda fields, folder: fields[side][0].update(data={"type": dtype})


def weights(kind: str, **changes: Any) -> Change:
    return lambda fields, folder: fields["weights"][kind].update(changes)


def tensor(name: str, edit: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Change the values of a test tensor."""

    def change(fields: Fields, folder: Path) -> None:
        np.save(folder / name, edit(np.load(folder / name)))

    return change


def sample(edit: Callable[[np.ndarray], np.ndarray], name: str = "sample.tif") -> Change:
    def change(fields: Fields, folder: Path) -> None:
        image = np.load(folder / "test_input.npy")[0, 0]
        tifffile.imwrite(folder / name, edit(image))
        fields["inputs"][0]["sample_tensor"] = {"source": name}

    return change


def code(body: str, returns: str = "Tensor") -> Change:
    """Replace the TorchScript archive by one with this code."""

    def change(fields: Fields, folder: Path) -> None:
        text = (
            "class Model(Module):\n"
            "  __parameters__ = []\n"
            f"  def forward(self: __torch__.Model, x: Tensor) -> {returns}:\n"
            f"    {body}\n"
        )
        with zipfile.ZipFile(folder / "script.pt", "w") as archive:
            archive.writestr("model/code/__torch__.py", text)
            archive.writestr("model/data.pkl", b"\x80\x02c__torch__\nModel\n)\x81.")

    return change


def graph(edit: Callable[[onnx.ModelProto], object]) -> Change:
    """Change the ONNX file."""

    def change(fields: Fields, folder: Path) -> None:
        model = onnx.load_model(folder / "weights.onnx")
        edit(model)
        (folder / "weights.onnx").write_bytes(model.SerializeToString())

    return change


def opset(model: onnx.ModelProto, version: int) -> None:
    model.opset_import[0].version = version


def foreign_domain(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain = "com.microsoft"


def external(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL


def bool_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.BOOL


def scalar_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.ClearField("dim")


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "other"


def garbage(name: str) -> Change:
    return lambda fields, folder: (folder / name).write_bytes(b"garbage")


def add_file(name: str, content: str = "") -> Change:
    return lambda fields, folder: (folder / name).write_text(content)


def rename_description(fields: Fields, folder: Path) -> None:
    (folder / "rdf.yaml").rename(folder / "bioimageio.yaml")


def second(side: str) -> Change:
    return lambda fields, folder: fields[side].append(dict(fields[side][0], id="second"))


def pickle_network(fields: Fields, folder: Path) -> None:
    torch.save(torch.nn.Conv2d(1, 1, 1), folder / "weights.pt")


def scalar_axes(fields: Fields, folder: Path, tensors: str = "outputs") -> None:
    fields[tensors][0]["axes"] = fields[tensors][0]["axes"][:2]


def transposed(fields: Fields, folder: Path) -> None:
    axes = fields["inputs"][0]["axes"]
    axes.append(axes.pop(1))


def data_dependent(fields: Fields, folder: Path) -> None:
    axis(fields, "outputs", 2)["size"] = {"min": 1, "max": 9}


def two_references(fields: Fields, folder: Path) -> None:
    axis(fields, "outputs", 2)["size"]["tensor_id"] = "another"


def near_tie(array: np.ndarray) -> np.ndarray:
    array[0, :2, 5, 5] = 0.5
    return array


ZMUV = "zero_mean_unit_variance"
BROKEN: list[tuple[str, Change]] = [
    ("FIJI001", rename_description),
    ("FIJI001", top(format_version="0.5.12")),
    ("FIJI001", top(format_version=0.5)),
    ("FIJI001", top(format_version="0.3.2")),
    ("FIJI002", top(documentation={"source": "README.md"})),
    ("FIJI002", top(license={"source": "LICENSE"})),
    ("FIJI003", top(covers=[{"source": "cover.png"}])),
    ("FIJI004", without("id")),
    ("FIJI005", config(deepimagej={"prediction": {}})),
    ("FIJI006", top(name="stardist")),
    ("FIJI006", several(top(name="my StarDist"), config(stardist={}))),
    ("FIJI010", second("inputs")),
    ("FIJI011", second("outputs")),
    ("FIJI012", everywhere("space", id="yy")),
    ("FIJI012", everywhere("space", type="spatial")),
    ("FIJI013", everywhere("channel", channel_names=[])),
    ("FIJI014", transposed),
    ("FIJI015", sizes({"min": 80, "step": 32})),
    ("FIJI015", sizes({"min": 80, "step": 0})),
    ("FIJI016", several()),
    ("FIJI017", sizes(FIXED)),
    ("FIJI018", everywhere("space", scale=0.5)),
    ("FIJI018", everywhere("space", unit="micrometer")),
    ("FIJI018", lambda fields, folder: axis(fields, "outputs", 2)["size"].update(offset=2)),
    ("FIJI018", two_references),
    ("FIJI019", lambda fields, folder: scalar_axes(fields, folder, "inputs")),
    ("FIJI019", data_dependent),
    ("FIJI020", sizes({"min": 64, "step": 1}, halo=0)),
    ("FIJI021", sizes({"min": 32, "step": 1}, halo=8)),
    ("FIJI021", sizes({"min": 64, "step": 1}, halo=32)),
    ("FIJI022", sizes(FIXED)),
    ("FIJI023", sizes({"min": 64, "step": 32})),
    ("FIJI030", data("outputs", "bool")),
    ("FIJI031", data("inputs", "uint8")),
    ("FIJI032", garbage("test_input.npy")),
    ("FIJI032", tensor("test_output.npy", lambda array: array[:, :2])),
    ("FIJI032", tensor("test_input.npy", lambda array: array[0])),
    ("FIJI032", tensor("test_input.npy", lambda array: array[..., :60])),
    ("FIJI033", sample(lambda image: image + 1)),
    ("FIJI033", sample(lambda image: image, "sample.png")),
    ("FIJI034", tensor("test_output.npy", np.zeros_like)),
    ("FIJI035", tensor("test_output.npy", near_tie)),
    ("FIJI040", steps(step("clip", min=0.0))),
    ("FIJI040", steps(step("clip", min_percentile=1.0, max_percentile=99.0))),
    ("FIJI040", steps(step("scale_linear", gain=[1.0], offset=[0.0]))),
    ("FIJI040", steps(step("fixed_" + ZMUV, mean=[0.5], std=[0.2], axis="channel"))),
    ("FIJI040", steps(step("sigmoid", axis="channel"), side="outputs")),
    ("FIJI041", steps(step("softmax", axis="channel"), side="outputs")),
    ("FIJI041", steps(step("scale_mean_variance", reference_tensor="input"), side="outputs")),
    ("FIJI042", several(data("inputs", "uint8"), steps(step("ensure_dtype", dtype="float32")))),
    ("FIJI043", steps(step("scale_range", min_percentile=1.0, max_percentile=99.0))),
    (
        "FIJI043",
        several(
            everywhere("channel", channel_names=["a", "b"]), steps(step(ZMUV, axes=["y", "x"]))
        ),
    ),
    ("FIJI050", several(without("weights", "torchscript"), without("weights", "onnx"))),
    ("FIJI051", weights("torchscript", pytorch_version="2.15.0")),
    ("FIJI052", weights("torchscript", pytorch_version="1.13.1")),
    ("FIJI053", code("return torch._upsample_lanczos2d_aa(x, [2, 2], False, None, None)")),
    ("FIJI053", code("return ops.mine.operator(x)")),
    ("FIJI053", code("return (")),
    ("FIJI053", garbage("script.pt")),
    ("FIJI054", code("return (x, x)", "Tuple[Tensor, Tensor]")),
    ("FIJI055", weights("onnx", opset_version=16)),
    ("FIJI055", several(weights("onnx", opset_version=18), graph(lambda model: opset(model, 18)))),
    ("FIJI055", several(weights("onnx", opset_version=13), graph(lambda model: opset(model, 13)))),
    ("FIJI055", graph(lambda model: setattr(model, "ir_version", 10))),
    ("FIJI055", graph(foreign_domain)),
    ("FIJI055", graph(external)),
    ("FIJI055", garbage("weights.onnx")),
    ("FIJI057", graph(bool_output)),
    ("FIJI057", graph(scalar_output)),
    ("FIJI058", garbage("weights.onnx")),
    ("FIJI058", without("weights", "onnx", "sha256")),
    ("FIJI059", lambda fields, folder: (folder / "cover.png").unlink()),
    ("FIJI059", weights("onnx", source="../weights.onnx")),
    ("FIJI060", weights("pytorch_state_dict", dependencies={"source": "environment.yaml"})),
    ("FIJI060", without("weights", "pytorch_state_dict", "architecture", "kwargs", "classes")),
    ("FIJI060", top(tags=["2d"])),
    ("FIJI060", add_file("arch.py", "import segmentation_models_pytorch as smp")),
    ("FIJI061", pickle_network),
    ("FIJI061", garbage("weights.pt")),
    ("FIJI062", add_file("README.md", "# Nothing to say")),
    ("FIJI062", without("covers")),
    ("FIJI062", garbage("cover.png")),
    ("FIJI063", add_file("notes.txt")),
    ("FIJI064", code("return torch.zeros([1], dtype=6, device=torch.device('cpu'))")),
    ("FIJI065", code("torch.save(x, '/etc/x')\n    return x")),
    ("FIJI065", code("return torch.from_file('/etc/x', False, 8)")),
    ("FIJI065", code("f = torch.save\n    return x")),
    ("FIJI065", code("return ops.c10d.send(x)")),
    ("FIJI066", graph(rename_output)),
    ("FIJI067", scalar_axes),
]
ALWAYS = {"FIJI016"}
"""Notes of limits that every package with variable sizes has."""


def numbered(cases: list[tuple[str, Change]]) -> list[str]:
    return [f"{code}-{number}" for number, (code, _) in enumerate(cases)]


@pytest.mark.parametrize(("expected", "change"), BROKEN, ids=numbered(BROKEN))
def test_what_is_broken_is_found(expected: str, change: Change, variant: Variant) -> None:
    found = [item for item in findings_of(variant(change)) if item.code == expected]
    assert found
    assert all(item.message and item.reason and item.remedy for item in found)


def test_numbers_beside_maps_are_a_warning(variant: Variant) -> None:
    """Fiji runs such a model, and its maps are right."""
    found = {item.code: item.severity for item in findings_of(variant(scalar_axes))}
    assert found["FIJI067"] is Severity.WARNING
    assert "FIJI019" not in found


def test_every_rule_has_an_example() -> None:
    assert [rule.code for rule in RULES] == sorted({code for code, _ in BROKEN})


def test_codes_are_unique() -> None:
    assert len({rule.code for rule in RULES}) == len(RULES)


def test_the_good_package_passes(good: Path) -> None:
    """It is the passing example of every rule but that on the largest image."""
    assert codes_of(good) == ALWAYS
    (note,) = findings_of(good)
    # 3 * 4096 * 4096 = 7094.47 ** 2 elements, less two halos of 16
    assert note.message == "up to about 7062 x 7062 pixels in Fiji"
    assert note.severity is Severity.NOTE


ACCEPTED: list[tuple[str, Change]] = [
    ("FIJI001", top(format_version="0.5.4")),
    ("FIJI004", several(without("id"), config(bioimageio={"nickname": "brave-otter"}))),
    ("FIJI005", config(deepimagej={"allow_tiling": True})),
    ("FIJI016", sizes(FIXED)),
    ("FIJI018", everywhere("space", scale=1.0)),
    ("FIJI033", sample(lambda image: image)),
    ("FIJI040", steps(step("clip", min=0.0, max=1.0), step("binarize", threshold=0.5))),
    ("FIJI040", steps(step("scale_linear", gain=2.0, offset=0.0))),
    ("FIJI040", steps(step("scale_linear", gain=[2.0], offset=[0.0], axes=["channel"]))),
    ("FIJI041", steps(step("sigmoid"), side="outputs")),
    ("FIJI042", steps(step("ensure_dtype", dtype="float32"))),
    ("FIJI043", steps(step(ZMUV, axes=["channel", "y", "x"]))),
    ("FIJI051", weights("torchscript", pytorch_version="1.12.1")),
    ("FIJI053", code("return torch.conv2d(x, x, None)")),
    ("FIJI054", several(second("outputs"), code("return (x, x)", "Tuple[Tensor, Tensor]"))),
    ("FIJI055", several(weights("onnx", opset_version=16), graph(lambda model: opset(model, 16)))),
    ("FIJI064", code("return torch.zeros([1], device=ops.prim.device(x))")),
]


@pytest.mark.parametrize(("unwanted", "change"), ACCEPTED, ids=numbered(ACCEPTED))
def test_what_is_allowed_is_accepted(unwanted: str, change: Change, variant: Variant) -> None:
    assert unwanted not in codes_of(variant(change))


# -- real networks ------------------------------------------------------------------------------


class Upsampling(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = [2 * int(x.shape[2]), 2 * int(x.shape[3])]
        return torch.nn.functional.interpolate(x, size, mode="bilinear")


@pytest.mark.parametrize("is_compiled", [True, False])
def test_compiled_interpolation_needs_a_newer_torch(is_compiled: bool, variant: Variant) -> None:
    """Compiling takes in every branch of torch's own code; tracing takes what runs."""

    def change(fields: Fields, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if is_compiled:
                module = torch.jit.script(Upsampling())
            else:
                module = torch.jit.trace(Upsampling(), torch.rand(1, 1, 8, 8))
            module.save(str(folder / "script.pt"))

    found = [item for item in findings_of(variant(change)) if item.code == "FIJI053"]
    assert bool(found) is is_compiled
    if is_compiled:
        assert "aten::_upsample_lanczos2d_aa" in found[0].message


def test_operators_of_torch_2_0_0() -> None:
    known = operators_of_torch_2_0_0()
    assert len(known) == 1907
    assert {"aten::conv2d", "aten::__isnot__", "prim::device", "aten::softmax"} <= known
    # they came later
    assert known.isdisjoint({"aten::_upsample_lanczos2d_aa", "aten::rms_norm"})


# -- foreign packages ---------------------------------------------------------------------------


def test_instanseg_brightfield(instanseg: Path) -> None:
    """Scales on its axes and a cover that is not there; all else about Fiji's reader is fine."""
    found = findings_of(instanseg / "brightfield_nuclei/0.1.1")
    errors = {item.code for item in found if item.severity is Severity.ERROR}
    assert errors == {"FIJI004", "FIJI018", "FIJI059"}
    scales = [item.place for item in found if item.code == "FIJI018" and "scale" in item.place]
    assert len(scales) == 4
    assert ("covers[0]", "cover.png is not in the package") in {
        (item.place, item.message) for item in found if item.code == "FIJI059"
    }


def test_instanseg_fluorescence(instanseg: Path) -> None:
    """Its channel axis is an index axis in addition."""
    found = findings_of(instanseg / "fluorescence_nuclei_and_cells/0.1.1/rdf.yaml")
    errors = {item.code for item in found if item.severity is Severity.ERROR}
    assert errors == {"FIJI004", "FIJI018", "FIJI019", "FIJI059"}


OLD = """
format_version: 0.4.10
type: model
name: an old model
description: of the year 2022
documentation: README.md
covers: [cover.png]
license: MIT
authors: [{name: A B}]
timestamp: 2022-10-01T12:00:00
config: {bioimageio: {nickname: old-otter}}
inputs:
- name: raw
  axes: bcyx
  data_type: float32
  shape: {min: [1, 1, 64, 64], step: [0, 0, 16, 16]}
  preprocessing:
  - name: zero_mean_unit_variance
    kwargs: {mode: per_sample, axes: xy}
outputs:
- name: maps
  axes: bcyx
  data_type: float32
  halo: [0, 0, 16, 16]
  shape: {reference_tensor: raw, scale: [1, 1, 1, 1], offset: [0, 1, 0, 0]}
test_inputs: [test_input.npy]
test_outputs: [test_output.npy]
weights:
  torchscript: {source: script.pt, pytorch_version: 1.12.1}
"""


def test_format_0_4(good: Path, variant: Variant) -> None:
    def change(fields: Fields, folder: Path) -> None:
        fields.clear()
        fields.update(yaml.safe_load(OLD))

    found = {item.code: item for item in findings_of(variant(change))}
    errors = [code for code, item in found.items() if item.severity is Severity.ERROR]
    # the offset of the channels
    assert errors == ["FIJI018"]
    assert found["FIJI018"].place == "outputs[0].axes[1].size.offset"
    assert found["FIJI023"].message == "got 16, expected 1"


# -- anything at all ----------------------------------------------------------------------------

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def replaced(value: Any, path: list[int], junk: Any) -> Any:
    """Put junk at the place that a path of choices leads to."""
    value = copy.copy(value)
    if not path or not isinstance(value, (dict, list)) or not value:
        return junk
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = keys[path[0] % len(keys)]
    value[key] = replaced(value[key], path[1:], junk)
    return value


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 99), min_size=1, max_size=6), JUNK), max_size=3),
    st.booleans(),
)
def test_no_description_stops_the_rules(
    good: Path, places: list[tuple[list[int], Any]], is_old: bool
) -> None:
    fields = yaml.safe_load(OLD if is_old else (good / "rdf.yaml").read_text())
    for path, junk in places:
        fields = replaced(fields, path, junk)
    package = Package(good / "empty", "rdf.yaml", "", fields, (), CheckLimits())
    for finding in lint(Subject(package)):
        assert len(finding.message) < 500
