"""Serves the ensemble of this repository: https://huggingface.co/docs/inference-endpoints."""

from df2serve.publish.endpoint import EndpointHandler

__all__ = ["EndpointHandler"]
