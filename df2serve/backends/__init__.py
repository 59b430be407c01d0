"""Engines that run member networks, behind one protocol."""

from df2serve.backends.factory import open_members
from df2serve.backends.runner import (
    FeatureRunner,
    MemberRunner,
    RunnerInfo,
    TileFeatures,
    mixture_of_views,
)

__all__ = [
    "FeatureRunner",
    "MemberRunner",
    "RunnerInfo",
    "TileFeatures",
    "mixture_of_views",
    "open_members",
]
