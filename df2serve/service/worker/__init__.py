"""The process that owns the models: run as ``python -m df2serve.service.worker FD``.

Only modules of this package import engines; the HTTP process imports none of them.
"""
