"""The review list as one HTML file that needs nothing else."""

from df2serve.writers.report._page import write_report

__all__ = ["write_report"]
