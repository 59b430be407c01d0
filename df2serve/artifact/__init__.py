"""The ensemble on disk: manifest, folder or zip, and the member networks."""

from df2serve.artifact.features import FEATURES, FeatureBank
from df2serve.artifact.folder import (
    Ensemble,
    GoldenTensors,
    load_ensemble,
    pack_ensemble,
    save_ensemble,
    with_files,
)
from df2serve.artifact.manifest import Calibration, Manifest, ReviewThreshold
from df2serve.artifact.network import DeepFlash2Unet, activate, create_network, input_multiple

__all__ = [
    "FEATURES",
    "Calibration",
    "DeepFlash2Unet",
    "Ensemble",
    "FeatureBank",
    "GoldenTensors",
    "Manifest",
    "ReviewThreshold",
    "activate",
    "create_network",
    "input_multiple",
    "load_ensemble",
    "pack_ensemble",
    "save_ensemble",
    "with_files",
]
