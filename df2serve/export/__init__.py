"""Ensembles as TorchScript, ONNX and bioimage.io packages, each compared with the ensemble."""
