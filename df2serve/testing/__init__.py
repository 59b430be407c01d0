"""For tests of df2serve and of what is built on it: conformance kits, cells, tiny ensembles."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from df2serve.testing.cells import CellSample as CellSample
    from df2serve.testing.cells import CellScene as CellScene
    from df2serve.testing.cells import generate_cells as generate_cells
    from df2serve.testing.cells import generate_ood as generate_ood
    from df2serve.testing.cells import simulate_experts as simulate_experts
    from df2serve.testing.contracts import MemberRunnerContract as MemberRunnerContract
    from df2serve.testing.disturbances import DISTURBANCES as DISTURBANCES
    from df2serve.testing.disturbances import disturb as disturb
    from df2serve.testing.ensembles import random_ensemble as random_ensemble
    from df2serve.testing.ensembles import tiny_network as tiny_network
    from df2serve.testing.fitted import FITTED_SCENE as FITTED_SCENE
    from df2serve.testing.fitted import fitted_ensemble as fitted_ensemble
else:
    import lazy_loader

    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "cells": [
                "CellSample",
                "CellScene",
                "generate_cells",
                "generate_ood",
                "simulate_experts",
            ],
            "contracts": ["MemberRunnerContract"],
            "disturbances": ["DISTURBANCES", "disturb"],
            "ensembles": ["random_ensemble", "tiny_network"],
            "fitted": ["FITTED_SCENE", "fitted_ensemble"],
        },
    )

__all__ = [
    "DISTURBANCES",
    "FITTED_SCENE",
    "CellSample",
    "CellScene",
    "MemberRunnerContract",
    "disturb",
    "fitted_ensemble",
    "generate_cells",
    "generate_ood",
    "random_ensemble",
    "simulate_experts",
    "tiny_network",
]
