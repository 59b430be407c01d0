"""Ensembles out to the world and back: the Hugging Face Hub and its model cards."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from df2serve.publish.address import HubAddress as HubAddress
    from df2serve.publish.hub import Pulled as Pulled
    from df2serve.publish.hub import open_ensemble as open_ensemble
    from df2serve.publish.hub import pull as pull
else:
    import lazy_loader

    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "address": ["HubAddress"],
            "hub": ["Pulled", "open_ensemble", "pull"],
        },
    )

__all__ = ["HubAddress", "Pulled", "open_ensemble", "pull"]
