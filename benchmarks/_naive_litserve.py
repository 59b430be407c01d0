"""What a first LitServe service looks like: ``python _naive_litserve.py PORT``."""

import io
import os
import sys
from typing import Any

import litserve  # type: ignore[import-untyped]
import numpy as np
from fastapi import Request, Response
from numpy.typing import NDArray
from PIL import Image

from df2serve import Predictor


class Naive(litserve.LitAPI):  # type: ignore[misc]
    """One model, one image at a time."""

    def setup(self, device: str) -> None:
        """Load the model."""
        del device
        self.predictor = Predictor(os.environ["BENCHMARK_ENSEMBLE"]).__enter__()

    def decode_request(self, request: Request, **_: Any) -> NDArray[np.uint8]:
        """Read the file of the form, which LitServe gives for the annotation ``Request``."""
        return np.asarray(Image.open(request["image"].file))

    def predict(self, x: NDArray[np.uint8], **_: Any) -> NDArray[np.uint8]:
        """Return the mask."""
        return self.predictor.predict(x).mask.astype(np.uint8)

    def encode_response(self, output: NDArray[np.uint8], **_: Any) -> Response:
        """Write the mask as PNG."""
        stream = io.BytesIO()
        Image.fromarray(output).save(stream, "PNG")
        return Response(stream.getvalue(), media_type="image/png")


if __name__ == "__main__":
    server = litserve.LitServer(Naive(), accelerator="cpu", timeout=3600)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
