"""Ensembles for other programs, and what other programs will say of a package."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from df2serve.export.card import Card as Card
    from df2serve.export.card import load_card as load_card
    from df2serve.export.exporting import Exported as Exported
    from df2serve.export.exporting import export_ensemble as export_ensemble
    from df2serve.export.settings import ExportSettings as ExportSettings
else:
    import lazy_loader

    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "card": ["Card", "load_card"],
            "exporting": ["Exported", "export_ensemble"],
            "settings": ["ExportSettings"],
        },
    )

__all__ = ["Card", "ExportSettings", "Exported", "export_ensemble", "load_card"]
