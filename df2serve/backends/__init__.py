"""Engines that run member networks, behind one protocol."""

from df2serve.backends.factory import open_members
from df2serve.backends.runner import MemberRunner, RunnerInfo, mixture_of_views

__all__ = ["MemberRunner", "RunnerInfo", "mixture_of_views", "open_members"]
