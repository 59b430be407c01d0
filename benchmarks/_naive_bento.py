"""What a first BentoML service looks like: ``bentoml serve _naive_bento:Naive``."""

from __future__ import annotations

import os

import bentoml
import numpy as np
from PIL import Image

from df2serve import Predictor


@bentoml.service(traffic={"timeout": 3600})
class Naive:
    """One method with a picture in and a picture out, which BentoML decodes and encodes."""

    def __init__(self) -> None:
        """Load the model."""
        self.predictor = Predictor(os.environ["BENCHMARK_ENSEMBLE"]).__enter__()

    @bentoml.api
    def predict(self, image: Image.Image) -> Image.Image:
        """Return the mask."""
        return Image.fromarray(self.predictor.predict(np.asarray(image)).mask.astype(np.uint8))
