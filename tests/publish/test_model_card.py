"""Model cards: what is stated is told, what is not is missing, nothing is made up."""

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from df2serve.artifact import Ensemble, load_ensemble, save_ensemble
from df2serve.artifact.manifest import Calibration
from df2serve.export import Card, load_card
from df2serve.publish import render_card
from df2serve.testing import tiny_network
from df2serve.testing.ensembles import manifest_fields

FACTS = {
    "authors": [{"name": "Ada Lovelace"}, {"name": "Grace Hopper"}],
    "license": "CC-BY-4.0",
    "description": "Cells in hippocampus.",
    "tags": ["nuclei"],
    "modality": "confocal | widefield",
    "target_structure": ["nucleus"],
    "intended_use": "Counting cells.",
    "out_of_scope_use": "Diagnosis.",
    "limitations": "Trained on six mice.",
    "cite": [{"text": "Cells and others (2025).", "doi": "10.1000/cells"}],
    "training_data": {"id": "lab/cells", "source": "https://huggingface.co/datasets/lab/cells"},
    "evaluation_data": {"id": "lab/cells-test"},
    "evaluation_role": "test",
    "environmental_impact": {"hardware_type": "one small GPU", "hours_used": 1.5},
}
DICE = (0.9, 0.8, 0.85)


def calibration(kind: str) -> Calibration:
    references = [
        {
            "name": f"{index}.png",
            "image_sha256": f"{index}" * 64,
            "kind": kind,
            "scores": {"u": 0.1 * index},
            "quality": {"dice": dice},
        }
        for index, dice in enumerate(DICE)
    ]
    threshold = {
        "score": "u", "value": 0.125, "metric": "dice", "required": 0.82, "failing": 1,
        "references": 3, "kind": kind,
    }  # fmt: skip
    if kind == "held_out":
        threshold["level"] = 0.5
    experts = {
        "metric": "dice", "reference": "leave_one_out", "images": 3, "worst": 0.61, "mean": 0.72,
        "best": 0.83, "below_worst": 0.0, "in_range": 0.25, "above_best": 0.75,
    }  # fmt: skip
    return Calibration.model_validate(
        {"references": references, "thresholds": [threshold], "expert_ranges": [experts]}
    )


@pytest.fixture
def measured(tmp_path: Path):
    """Build an ensemble with calibration and origin."""

    def build(kind: str = "held_out", weights: str = "timm/resnet18.a1_in1k") -> Ensemble:
        fields = manifest_fields(channels=1, classes=2, tile=64)
        fields["pixel_size_um"] = {"y_um": 0.5, "x_um": 0.5}
        fields["encoder_weights"] = {"name": weights, "license": "apache-2.0"}
        return save_ensemble(
            tmp_path / "measured",
            fields,
            [tiny_network(0, channels=1, classes=2)],
            files={"calibration.json": calibration(kind).to_json()},
        )

    return build


def test_all_facts(measured) -> None:
    rendered = render_card(measured(), Card.model_validate(FACTS), repository="lab/cells")
    assert rendered.missing == ()
    card = ModelCard(rendered.text)
    data = card.data.to_dict()
    results = data.pop("model-index")
    assert data == {
        "base_model": "timm/resnet18.a1_in1k",
        "base_model_relation": "finetune",
        "datasets": ["lab/cells"],
        "library_name": "segmentation-models-pytorch",
        "license": "cc-by-4.0",
        "pipeline_tag": "image-segmentation",
        "tags": ["df2serve", "deep-ensemble", "uncertainty", "bioimage", "nuclei"],
    }
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == (
        "dice", pytest.approx(sum(DICE) / 3, abs=5e-5), "lab/cells-test"
    )  # fmt: skip
    assert results[0]["name"] == "Tiny ensemble"
    for line in (
        "| dice | 0.850 | 0.800 | 0.900 | 3 |",
        "| dice, 3 images | estimated of the other experts | 0.610 | 0.720 | 0.830 | "
        "0%, 25%, 75% |",
        "| modality | confocal \\| widefield |",
        "| weights of the encoder | timm/resnet18.a1_in1k (apache-2.0) |",
        "- review images with u of 0.1250 and more; the threshold comes from 1 of 3 reference "
        "images, those with dice < 0.82: another such image escapes review with a chance of at "
        "most 0.500",
        "- Cells and others (2025). 10.1000/cells",
        "- hours: 1.5",
        "Ada Lovelace, Grace Hopper",
        "df2serve predict hf://lab/cells IMAGES -o OUT",
        "Images that no member saw in its training:",
    ):
        assert line in rendered.text
    for text in ("Counting cells.", "Diagnosis.", "Trained on six mice."):
        assert f"\n{text}\n" in rendered.text


def test_nothing_is_made_up(original: Ensemble) -> None:
    rendered = render_card(original, Card())
    assert [name.partition(" (")[0] for name in rendered.missing] == [
        "license", "description", "authors", "intended_use", "limitations", "modality",
        "target_structure", "training_data", "pixel_size_um", "encoder_weights",
        "scores of reference images", "threshold for review",
    ]  # fmt: skip
    assert set(ModelCard(rendered.text).data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    assert "records no comparison" in rendered.text
    for absent in ("None", "Experts", "Calibration", "Training", "Authors", "{{", "{%"):
        assert absent not in rendered.text
    assert "\n\n\n" not in rendered.text


def test_images_of_the_training_are_called_so(measured) -> None:
    text = render_card(measured("out_of_fold"), Card()).text
    assert "each predicted by the members alone that did not see it" in text
    assert "; the threshold comes from images of the training: it guarantees nothing" in text


@pytest.mark.parametrize(
    ("license_id", "expected"),
    [
        ("MIT", {"license": "mit"}),
        ("GPL-3.0-or-later", {"license": "gpl-3.0"}),
        ("LicenseRef-Lab", {"license": "other", "license_name": "LicenseRef-Lab"}),
    ],
)
def test_licenses(original: Ensemble, license_id: str, expected: dict[str, str]) -> None:
    data = ModelCard(render_card(original, Card(license=license_id)).text).data.to_dict()
    assert {key: value for key, value in data.items() if "license" in key} == expected


def test_weights_of_elsewhere_are_no_base_model(measured) -> None:
    text = render_card(measured(weights="smp/resnet18.imagenet"), Card()).text
    assert "base_model" not in text
    assert "| weights of the encoder | smp/resnet18.imagenet (apache-2.0) |" in text


def test_the_verb(df2serve, ensemble: Ensemble, tmp_path: Path) -> None:
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(FACTS))
    code, out, errors = df2serve("card", ensemble.source, "--card", tmp_path / "card.yaml")
    assert (code, out) == (0, f"{ensemble.source / 'README.md'}\n")
    assert re.findall("missing: (\\w+)", errors) == [
        "pixel_size_um", "encoder_weights", "scores", "threshold"
    ]  # fmt: skip
    expected = render_card(load_ensemble(ensemble.source), load_card(tmp_path / "card.yaml"))
    assert (ensemble.source / "README.md").read_text() == expected.text
    code, _, errors = df2serve("card", ensemble.source, "-o", tmp_path / "no/where.md")
    assert code == 2
    assert "cannot write" in errors
