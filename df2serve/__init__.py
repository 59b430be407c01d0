"""Train a k-fold segmentation ensemble once, run it everywhere with calibrated uncertainty.

Example:
    >>> import df2serve
    >>> prediction = df2serve.predict("cells.tif", ensemble="my_ensemble")  # doctest: +SKIP
    >>> prediction.mask, prediction.total, prediction.scores.u  # doctest: +SKIP
"""

from typing import TYPE_CHECKING

from df2serve._version import __version__

if TYPE_CHECKING:
    from df2serve.artifact import Ensemble as Ensemble
    from df2serve.artifact import load_ensemble as load_ensemble
    from df2serve.client import AsyncClient as AsyncClient
    from df2serve.client import Client as Client
    from df2serve.config import InferenceConfig as InferenceConfig
    from df2serve.config import RuntimeConfig as RuntimeConfig
    from df2serve.config import preset as preset
    from df2serve.inference import Prediction as Prediction
    from df2serve.inference import Predictor as Predictor
    from df2serve.inference import predict as predict
    from df2serve.io import Image as Image
    from df2serve.io import open_image as open_image
    from df2serve.io import read_image as read_image
    from df2serve.io import read_mask as read_mask
else:
    import lazy_loader

    __getattr__, _, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "artifact": ["Ensemble", "load_ensemble"],
            "client": ["AsyncClient", "Client"],
            "config": ["InferenceConfig", "RuntimeConfig", "preset"],
            "inference": ["Prediction", "Predictor", "predict"],
            "io": ["Image", "open_image", "read_image", "read_mask"],
        },
    )

__all__ = [
    "AsyncClient",
    "Client",
    "Ensemble",
    "Image",
    "InferenceConfig",
    "Prediction",
    "Predictor",
    "RuntimeConfig",
    "__version__",
    "load_ensemble",
    "open_image",
    "predict",
    "preset",
    "read_image",
    "read_mask",
]


def __dir__() -> list[str]:
    return __all__
