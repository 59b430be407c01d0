"""Predictions by a df2serve service (``df2serve serve``), as Python objects.

Importing it loads neither engines nor NumPy; what handles pixels does so when there are some.
"""

from df2serve.client.asynchronous import AsyncClient, AsyncJob
from df2serve.client.results import JobOutcome, Ranking, Result
from df2serve.client.synchronous import Client, Job
from df2serve.client.uploads import Parameters, StoredImage

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "Client",
    "Job",
    "JobOutcome",
    "Parameters",
    "Ranking",
    "Result",
    "StoredImage",
]
