"""What Fiji, bioimageio.core and the Zoo will say of a package."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from df2serve.export.checks.check import check_package as check_package
    from df2serve.export.checks.report import CheckReport as CheckReport
    from df2serve.export.checks.report import Finding as Finding
    from df2serve.export.checks.report import Severity as Severity
else:
    import lazy_loader

    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "check": ["check_package"],
            "report": ["CheckReport", "Finding", "Severity"],
        },
    )

__all__ = ["CheckReport", "Finding", "Severity", "check_package"]
