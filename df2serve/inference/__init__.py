"""From an image and an ensemble to a prediction."""

from df2serve.inference.prediction import Band, Prediction, Progress, Provenance, Summary
from df2serve.inference.predictor import (
    ImageSource,
    Outcome,
    PredictionStream,
    Predictor,
    predict,
)

__all__ = [
    "Band",
    "ImageSource",
    "Outcome",
    "Prediction",
    "PredictionStream",
    "Predictor",
    "Progress",
    "Provenance",
    "Summary",
    "predict",
]
