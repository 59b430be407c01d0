"""What an ensemble says about its training and its quality, in the words of bioimage.io."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from df2serve.artifact import Ensemble, Manifest
from df2serve.config import PercentileNormalization, TrainingNormalization
from df2serve.export.card import Card
from df2serve.export.system import ExportSource

__all__ = ["architecture_facts", "evaluations", "normalization_text", "stated", "training_facts"]


def stated(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known: without absent and empty values."""
    return {key: value for key, value in facts.items() if value not in (None, "", (), [], {})}


def normalization_text(manifest: Manifest) -> str:
    """Return in words how intensities become network input."""
    match manifest.normalization:
        case TrainingNormalization(means=means, stds=stds):
            pairs = ", ".join(f"{m:.6g} and {s:.6g}" for m, s in zip(means, stds, strict=True))
            return f"per channel, mean subtracted and divided by standard deviation: {pairs}"
        case PercentileNormalization(low=low, high=high):
            return f"percentiles {low:g} and {high:g} of each channel of an image become 0 and 1"
        case other:
            return {
                "image": "zero mean and unit variance for each channel of an image",
                "none": "raw intensities",
            }[other.kind]


def training_facts(manifest: Manifest) -> dict[str, Any]:
    """Return ``config.bioimageio.training`` as far as the ensemble records it."""
    recipe = _section(manifest.training, "recipe")
    settings, optimizer = _section(recipe, "training"), _section(recipe, "optimizer")
    phases = settings.get("phases") or []
    members = manifest.training.get("members")
    seconds = [
        float(spent)
        for member in (members if isinstance(members, list) else [])
        if isinstance(member, dict) and isinstance(spent := member.get("seconds"), int | float)
    ]
    return stated(
        {
            "training_preprocessing": normalization_text(manifest),
            "training_batch_size": settings.get("batch_size"),
            "initial_learning_rate": _first_rate(phases),
            "learning_rate_schedule": _schedule(phases, settings.get("steps")),
            "loss_function": settings.get("loss"),
            "optimizer": optimizer.get("name"),
            "optimizer_kwargs": {key: value for key, value in optimizer.items() if key != "name"},
            "regularization": _regularization(settings, optimizer),
            "training_duration": round(sum(seconds) / 3600, 3) if seconds else None,
        }
    )


def architecture_facts(source: ExportSource) -> dict[str, Any]:
    """Return type, description and size of the networks."""
    kinds = sorted({type(network).__name__ for network in source.networks})
    encoders = sorted(
        {str(network.config.get("encoder_name")) for network in source.networks}  # type: ignore[union-attr,operator]
    )
    views = source.config.views
    return {
        "architecture_type": f"ensemble of {' and '.join(kinds)}"[:32],
        "architecture_description": (
            f"{len(source.networks)} networks ({', '.join(kinds)} with encoder "
            f"{', '.join(encoders)}), {views} test-time views each; the mean of their class "
            "probabilities is the prediction, its variance the uncertainty"
        ),
        "model_parameter_count": sum(
            parameter.numel() for network in source.networks for parameter in network.parameters()
        ),
    }


def evaluations(ensemble: Ensemble, card: Card) -> list[dict[str, Any]]:
    """Return how predictions of reference images compared with the truth, per metric.

    Held-out images come first; without them, those that each member alone did not see.
    """
    data = card.evaluation_data
    references = ensemble.calibration.references
    held_out = [reference for reference in references if reference.kind == "held_out"]
    chosen = held_out or list(references)
    metrics = sorted({metric for reference in chosen for metric in reference.quality})
    if data is None or data.source is None or not metrics:
        return []
    means = [
        fmean(reference.quality[metric] for reference in chosen if metric in reference.quality)
        for metric in metrics
    ]
    return [
        {
            "dataset_id": data.id,
            "dataset_source": data.source,
            "dataset_role": card.evaluation_role if held_out else "validation",
            "sample_count": len(chosen),
            "evaluation_factors": ["overall"],
            "evaluation_factors_long": ["all images"],
            "metrics": [metric[:16] for metric in metrics],
            "metrics_long": [f"mean over images of {metric}" for metric in metrics],
            "results": [[round(mean, 4)] for mean in means],
        }
    ]


def _section(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key)
    return value if isinstance(value, Mapping) else {}


def _first_rate(phases: list[Any]) -> float | None:
    if not phases:
        return None
    return float(f"{phases[0]['rate'] / phases[0].get('start_divisor', 1):.6g}")


def _schedule(phases: list[Any], steps: int | None) -> str | None:
    if not phases or steps is None:
        return None
    parts = [
        f"{round(phase['share'] * steps)} steps up to {phase['rate']:g}"
        + (" with frozen encoder" if phase.get("freeze_encoder") else "")
        for phase in phases
    ]
    return f"one cycle of half cosines per phase: {', '.join(parts)}"


def _regularization(settings: Mapping[str, Any], optimizer: Mapping[str, Any]) -> str | None:
    parts = [
        f"{name} {value:g}"
        for name, value in (
            ("weight decay", optimizer.get("weight_decay")),
            ("exponential average of weights", settings.get("ema_decay")),
        )
        if value
    ]
    return ", ".join(parts) or None
