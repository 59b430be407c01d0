"""Train a k-fold segmentation ensemble once, run it everywhere with calibrated uncertainty."""

from df2serve._version import __version__

__all__ = ["__version__"]
