"""Whether a prediction can say how far its image is from the references, and how it does so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from df2serve.artifact import Ensemble, FeatureBank
from df2serve.backends import FeatureRunner, MemberRunner
from df2serve.config import InferenceConfig
from df2serve.core.features import FeatureMeans
from df2serve.errors import BackendError

__all__ = ["FeatureMeter"]

_MISSING = "there is no feature_distance"


@dataclass(frozen=True)
class FeatureMeter:
    """Gathers features and compares them with the bank of an ensemble, where both can be done."""

    folders: tuple[str, ...]
    """Of the members."""
    gather: bool
    """Whether features are gathered, for which every runner has to give them."""
    bank: FeatureBank | None = None
    remark: str = ""
    """Why there is a bank, but no distance."""

    @classmethod
    def of(
        cls,
        ensemble: Ensemble,
        config: InferenceConfig,
        runners: Sequence[MemberRunner],
        *,
        collect: bool,
    ) -> FeatureMeter:
        """Find out what can be done.

        Args:
            ensemble: with a bank or without.
            config: in effect.
            runners: of the members.
            collect: gather features for a new bank, and compare them with none.

        Raises:
            BackendError: features are to be collected, and the runners give none.
            ArtifactError: the bank is damaged, or of other networks.
        """
        folders = tuple(member.folder for member in ensemble.manifest.members)
        problem = _problem_of(runners, len(folders))
        if collect:
            if problem:
                message = f"{problem}, so that there are no features to collect"
                raise BackendError(message)
            return cls(folders, gather=True)
        bank = ensemble.features()
        if bank is None:
            return cls(folders, gather=False)
        changed = bank.changed(config)
        if not problem and changed:
            problem = f"the ensemble's features are of other settings ({changed})"
        if problem:
            return cls(folders, gather=False, remark=f"{_MISSING}: {problem}")
        return cls(folders, gather=True, bank=bank)

    def means(self) -> FeatureMeans | None:
        """Return what gathers the features of one image, if they are wanted."""
        return FeatureMeans() if self.gather else None

    def measure(
        self, vectors: tuple[NDArray[np.float32], ...], sha256: str | None
    ) -> tuple[float | None, str]:
        """Return how far an image is from the bank, or else why that cannot be said.

        Args:
            vectors: of the members; none where nothing was gathered.
            sha256: hash of the image's file, which is never compared with itself.
        """
        if self.bank is None:
            return None, self.remark
        if not all(np.isfinite(vector).all() for vector in vectors):
            return None, f"{_MISSING}: features are too large for the precision"
        return self.bank.distance(self.folders, vectors, without=sha256), ""


def _problem_of(runners: Sequence[MemberRunner], members: int) -> str:
    """Return why runners cannot be compared with the bank of so many members."""
    if len(runners) != members:
        return f"{len(runners)} of the ensemble's {members} members predict"
    silent = [runner for runner in runners if not isinstance(runner, FeatureRunner)]
    if silent:
        return f"the backend {silent[0].info.backend} gives no features, unlike torch"
    return ""
