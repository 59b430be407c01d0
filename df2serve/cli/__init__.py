"""The command line: one module per verb."""

from df2serve.cli.app import app, main

__all__ = ["app", "main"]
