"""Doubtful images to people who draw, and their masks back into a training folder."""

from df2serve.writers.annotation._accept import AcceptedMask, accept_annotations
from df2serve.writers.annotation._export import export_for_annotation
from df2serve.writers.annotation._manifest import AnnotationItem, AnnotationManifest

__all__ = [
    "AcceptedMask",
    "AnnotationItem",
    "AnnotationManifest",
    "accept_annotations",
    "export_for_annotation",
]
