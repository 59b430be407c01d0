"""The HTTP service."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from df2serve.service.app import create_app as create_app
    from df2serve.service.settings import Settings as Settings
    from df2serve.service.settings import load_settings as load_settings
else:
    import lazy_loader

    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={"app": ["create_app"], "settings": ["Settings", "load_settings"]},
    )

__all__ = ["Settings", "create_app", "load_settings"]
