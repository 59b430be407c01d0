"""The documentation of a package: what it is, how to use it, what is not to be expected of it."""

from __future__ import annotations

import math

from df2serve.export._facts import evaluations, normalization_text
from df2serve.export._rdf import PackageFacts

__all__ = ["readme"]

_ELEMENTS = 4096**2 * 3
"""Values of an image from which on Fiji's reader does not come back."""
_BORDER = 2 * 32


def readme(facts: PackageFacts) -> str:
    """Return the text of ``README.md``."""
    source, card = facts.source, facts.card
    manifest = source.ensemble.manifest
    sections = [
        f"# {card.name or manifest.name}",
        f"## Description\n\n{card.description}\n\n{_method(facts)}",
        f"## Intended Use\n\n{card.intended_use or _use(facts)}",
        f"## Input and Output\n\n{_tensors(facts)}",
        f"## Validation\n\n{_validation(facts)}",
        f"## Limits\n\n{_limits(facts)}",
        f"## Citation\n\n{_citation(facts)}",
    ]
    return "\n\n".join(sections) + "\n"


def _method(facts: PackageFacts) -> str:
    source = facts.source
    return (
        f"{len(source.networks)} networks see each tile in {source.config.views} test-time views. "
        "The mean of their class probabilities is the prediction; its variance is the uncertainty "
        "of every pixel; U, the mean uncertainty over the predicted foreground, says how much the "
        "whole result is to be doubted (Griebel et al. 2023)."
    )


def _use(facts: PackageFacts) -> str:
    channels = ", ".join(channel.name for channel in facts.source.ensemble.manifest.channels)
    return (
        f"Semantic segmentation of 2D images with the channels {channels}, taken like the training "
        "images. Look at images with large U first."
    )


def _tensors(facts: PackageFacts) -> str:
    manifest = facts.source.ensemble.manifest
    classes = ", ".join(f"{k} {item.name}" for k, item in enumerate(manifest.classes))
    size = manifest.pixel_size_um
    scale = f" Training images have pixels of {size.y_um:g} x {size.x_um:g} um." if size else ""
    rows, columns = facts.source.tile_shape
    outputs = {
        "fiji": "one stack: a probability per class, total uncertainty, mask",
        "full": "probabilities, mask, uncertainty (total and epistemic), and the score U",
    }[facts.source.settings.variant]
    if facts.source.has_distance:
        outputs += ", and the relative distance to the boundary of objects"
    return (
        f"Input: raw intensities of any size; normalization is part of the model "
        f"({normalization_text(manifest)}).{scale}\n\n"
        f"Output: {outputs}. Classes: {classes}. Tiles have {rows} x {columns} pixels and are "
        "blended with a Gaussian window; the ONNX file takes the image as one tile.\n\n"
        "`uncertainty_score.ijm` computes U and measures objects in ImageJ, `split_objects.ijm` "
        "separates touching objects. `df2serve predict` takes this package as an ensemble."
    )


def _validation(facts: PackageFacts) -> str:
    lines = [
        f"Every format was compared with the ensemble `{facts.source.ensemble.manifest.id}` "
        f"(sha256 `{facts.source.ensemble.sha256[:16]}…`) on its test image and on images of other "
        "sizes:",
        "",
        "| format | largest deviation | pixels of another class |",
        "|---|---|---|",
        *(
            f"| {kind} | {one.largest:.1e} | {one.mask_pixels} |"
            for kind, one in facts.deviations.items()
        ),
        "",
    ]
    for member in facts.source.members:
        entry = facts.source.ensemble.manifest.members[member]
        if entry.validation:
            scores = ", ".join(f"{name} {value:.3f}" for name, value in entry.validation.items())
            lines.append(f"- member {member} on the images that it did not see: {scores}")
    for one in evaluations(facts.source.ensemble, facts.card):
        for metric, (value,) in zip(one["metrics"], one["results"], strict=True):
            lines.append(
                f"- {metric} on {one['sample_count']} images of {one['dataset_id']}: {value:.3f}"
            )
    threshold = facts.source.ensemble.calibration.threshold("u")
    if threshold is not None and facts.source.settings.member is None:
        lines.append(f"- images with U of {threshold.value:.3f} and more need review")
    lines += [
        "",
        "To validate the model on your own images, compare its mask with masks drawn by hand, for "
        "example by the Dice score, before you trust it: `df2serve evaluate` does so.",
    ]
    return "\n".join(lines)


def _limits(facts: PackageFacts) -> str:
    channels = facts.source.ensemble.manifest.num_channels
    side = math.isqrt(_ELEMENTS // channels) - _BORDER
    text = (
        f"- Fiji hangs on images of more than {side} x {side} pixels ({_ELEMENTS} values with the "
        "border); cut them before.\n"
        "- U holds for the image that it was computed of. Programs that cut images into tiles and "
        "keep one number give the last tile's; compute U from the maps "
        "(`uncertainty_score.ijm`).\n"
        "- Uncertainty tells what the networks disagree about or cannot decide. Images unlike all "
        "training images may be segmented wrongly with little uncertainty."
    )
    given = facts.card.limitations
    return f"{text}\n\n{given}" if given else text


def _citation(facts: PackageFacts) -> str:
    own = [f"- {item.text} {item.doi or item.url}" for item in facts.card.cite]
    paper = (
        "- Griebel et al. (2023): Deep learning-enabled segmentation of ambiguous bioimages with "
        "deepflash2. Nature Communications 14, 1679. https://doi.org/10.1038/s41467-023-36960-9"
    )
    return "\n".join([*own, paper])
