"""Model cards: what an ensemble states and what people say of it, as the Hub's ``README.md``.

Nothing is made up. A fact that is stated nowhere is left out of the card and listed as missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from statistics import fmean
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from df2serve.artifact import Calibration, Ensemble
from df2serve.artifact.manifest import ExpertRange, Reference
from df2serve.export._facts import normalization_text, stated
from df2serve.export.card import Card

__all__ = ["RenderedCard", "render_card"]

_PAPER = (
    "Griebel et al. (2023): Deep learning-enabled segmentation of ambiguous bioimages with "
    "deepflash2. Nature Communications 14, 1679. https://doi.org/10.1038/s41467-023-36960-9"
)
_HUB_DATASETS = "https://huggingface.co/datasets/"
_LICENSES = """
    agpl-3.0 apache-2.0 bsd-2-clause bsd-3-clause bsl-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0
    cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-4.0 cc-by-nd-4.0
    cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 eupl-1.2 gpl-2.0 gpl-3.0 isc lgpl-3.0 mit mpl-2.0
    odbl unlicense
"""
"""Identifiers of the Hub that are SPDX identifiers in lower case; others are named ``other``."""


@dataclass(frozen=True)
class RenderedCard:
    """The text of a model card, and what it could not tell."""

    text: str
    missing: tuple[str, ...]
    """Facts that are stated nowhere, with the place to state them."""


def render_card(ensemble: Ensemble, card: Card, *, repository: str | None = None) -> RenderedCard:
    """Return the model card of an ensemble.

    Args:
        ensemble: what it records about itself.
        card: what people say of it.
        repository: ``org/name`` on the Hub, for the examples.
    """
    manifest = ensemble.manifest
    template = files("df2serve.publish").joinpath("templates", "model_card.md")
    chosen = _references(ensemble.calibration)
    rendered = ModelCard.from_template(
        _metadata(ensemble, card, chosen),
        template_str=template.read_text(encoding="utf-8"),
        name=card.name or manifest.name,
        description=card.description or manifest.description,
        members=len(ensemble),
        views=manifest.inference.views,
        facts=[(name, _cell(value)) for name, value in _facts(ensemble, card).items()],
        repository=repository or "ORG/NAME",
        address=f"hf://{repository or 'ORG/NAME'}",
        intended_use=card.intended_use,
        out_of_scope_use=card.out_of_scope_use,
        kind=_kind(chosen),
        qualities=_qualities(chosen),
        folds=_folds(ensemble),
        experts=[_expert_row(found) for found in ensemble.calibration.expert_ranges],
        calibration=_calibration(ensemble.calibration),
        limits=[text for text in (card.limitations, card.known_biases, card.risks) if text],
        made=_training(ensemble, card),
        citations=[*(f"{item.text} {item.doi or item.url}" for item in card.cite), _PAPER],
        authors=", ".join(person.name for person in card.authors),
    )
    return RenderedCard(text=str(rendered).rstrip() + "\n", missing=_missing(ensemble, card))


def _missing(ensemble: Ensemble, card: Card) -> tuple[str, ...]:
    """Return what readers will look for in vain."""
    manifest, calibration = ensemble.manifest, ensemble.calibration
    needed = {
        "license (card or ensemble)": card.license or manifest.license,
        "description (card or ensemble)": card.description or manifest.description,
        "authors (card)": card.authors,
        "intended_use (card)": card.intended_use,
        "limitations (card)": card.limitations,
        "modality (card)": card.modality,
        "target_structure (card)": card.target_structure,
        "training_data (card)": card.training_data,
        "pixel_size_um (ensemble)": manifest.pixel_size_um,
        "encoder_weights (ensemble)": manifest.encoder_weights,
        "scores of reference images (df2serve evaluate --calibrate)": calibration.references,
        "threshold for review (df2serve evaluate --calibrate)": calibration.thresholds
        or calibration.failure_bound,
    }
    return tuple(name for name, value in needed.items() if not value)


# -- metadata -----------------------------------------------------------------------------------


def _metadata(ensemble: Ensemble, card: Card, chosen: list[Reference]) -> ModelCardData:
    manifest = ensemble.manifest
    results = _results(card, chosen)
    origin: dict[str, Any] = _license(card.license or manifest.license) | _base_model(ensemble)
    return ModelCardData(
        library_name="segmentation-models-pytorch",
        pipeline_tag="image-segmentation",
        tags=["df2serve", "deep-ensemble", "uncertainty", "bioimage", *card.tags],
        datasets=_hub_dataset(card),
        model_name=(card.name or manifest.name) if results else None,
        eval_results=results or None,
        **origin,
    )


def _license(spdx: str | None) -> dict[str, str]:
    if spdx is None:
        return {}
    known = spdx.lower().removesuffix("-only").removesuffix("-or-later")
    if known in _LICENSES.split():
        return {"license": known}
    return {"license": "other", "license_name": spdx}


def _base_model(ensemble: Ensemble) -> dict[str, str]:
    """Return the repository of the encoder's weights, where they came from timm's."""
    origin = ensemble.manifest.encoder_weights
    if origin is None or not origin.name.startswith("timm/"):
        return {}
    return {"base_model": origin.name, "base_model_relation": "finetune"}


def _hub_dataset(card: Card) -> list[str] | None:
    source = card.training_data.source if card.training_data else None
    if source is None or not source.startswith(_HUB_DATASETS):
        return None
    return [source.removeprefix(_HUB_DATASETS).strip("/")]


def _results(card: Card, chosen: list[Reference]) -> list[EvalResult]:
    """Return the entries of ``model-index``; they need the name of a data set."""
    data = card.evaluation_data
    if data is None:
        return []
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=data.id,
            dataset_name=data.id,
            dataset_split=None if card.evaluation_role == "unknown" else card.evaluation_role,
            metric_type=metric,
            metric_name=f"mean {metric} of {len(values)} images",
            metric_value=round(fmean(values), 4),
        )
        for metric, values in _values(chosen).items()
    ]


# -- sections -----------------------------------------------------------------------------------


def _facts(ensemble: Ensemble, card: Card) -> dict[str, str]:
    manifest = ensemble.manifest
    size, origin = manifest.pixel_size_um, manifest.encoder_weights
    licensed = f" ({origin.license})" if origin and origin.license else ""
    return stated(
        {
            "classes": ", ".join(f"{k} {item.name}" for k, item in enumerate(manifest.classes)),
            "channels": ", ".join(item.name for item in manifest.channels),
            "modality": card.modality,
            "target structures": ", ".join(card.target_structure),
            "pixel size of the training images": f"{size.y_um:g} x {size.x_um:g} um"
            if size
            else "",
            "normalization": normalization_text(manifest),
            "tile": "{} x {} px".format(*manifest.tile_shape),
            "weights of the encoder": f"{origin.name}{licensed}" if origin else "",
            "license": card.license or manifest.license,
            "sha256 of `ensemble.json`": f"`{ensemble.sha256}`",
        }
    )


def _cell(text: str) -> str:
    """Return text that does not end the cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _references(calibration: Calibration) -> list[Reference]:
    """Return held-out images; without them, those that each member alone did not see."""
    held_out = [found for found in calibration.references if found.kind == "held_out"]
    return held_out or list(calibration.references)


def _kind(chosen: list[Reference]) -> str:
    if chosen and chosen[0].kind == "held_out":
        return "Images that no member saw in its training:"
    return "Images of the training, each predicted by the members alone that did not see it:"


def _values(chosen: list[Reference]) -> dict[str, list[float]]:
    """Return the qualities of all images by metric."""
    metrics = sorted({metric for reference in chosen for metric in reference.quality})
    return {m: [one.quality[m] for one in chosen if m in one.quality] for m in metrics}


def _qualities(chosen: list[Reference]) -> list[dict[str, str]]:
    return [
        {
            "metric": metric,
            "mean": f"{fmean(values):.3f}",
            "lowest": f"{min(values):.3f}",
            "highest": f"{max(values):.3f}",
            "images": str(len(values)),
        }
        for metric, values in _values(chosen).items()
    ]


def _folds(ensemble: Ensemble) -> list[str]:
    return [
        f"fold {member.fold if member.fold is not None else index}: "
        + ", ".join(f"{name} {value:.3f}" for name, value in member.validation.items())
        for index, member in enumerate(ensemble.manifest.members)
        if member.validation
    ]


def _expert_row(found: ExpertRange) -> dict[str, str]:
    estimate = found.reference == "estimate"
    shares = (found.below_worst, found.in_range, found.above_best)
    return {
        "metric": f"{found.metric}, {found.images} images",
        "truth": "estimated of all experts" if estimate else "estimated of the other experts",
        "worst": f"{found.worst:.3f}",
        "mean": f"{found.mean:.3f}",
        "best": f"{found.best:.3f}",
        "shares": ", ".join(f"{share:.0%}" for share in shares),
    }


def _calibration(calibration: Calibration) -> list[str]:
    lines = [
        f"review images with {found.score} of {found.value:.4f} and more; {found.meaning}"
        for found in calibration.thresholds
    ]
    if calibration.failure_bound is not None:
        lines.append(calibration.failure_bound.meaning)
    if (temperature := calibration.temperature) is not None:
        lines.append(
            f"expected calibration error {temperature.ece_before:.3f}, of probabilities in and "
            f"around objects; temperature {temperature.value:.2f} would make it "
            f"{temperature.ece_after:.3f} and is not applied"
        )
    return lines


def _training(ensemble: Ensemble, card: Card) -> list[str]:
    cost, data = card.environmental_impact, card.training_data
    facts = stated(
        {
            "data": " ".join(filter(None, (data.id, data.source))) if data else None,
            "hardware": cost.hardware_type if cost else None,
            "hours": cost.hours_used if cost else None,
            "CO2 in kg": cost.co2_emitted if cost else None,
            "versions": ", ".join(f"{k} {v}" for k, v in ensemble.manifest.versions.items()),
        }
    )
    return [f"{name}: {value}" for name, value in facts.items()]
