"""Networks that other programs trained become ensembles."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from df2serve.importing.importing import Imported as Imported
    from df2serve.importing.importing import import_ensemble as import_ensemble
    from df2serve.importing.settings import ImportSettings as ImportSettings
else:
    import lazy_loader

    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "importing": ["Imported", "import_ensemble"],
            "settings": ["ImportSettings"],
        },
    )

__all__ = ["ImportSettings", "Imported", "import_ensemble"]
