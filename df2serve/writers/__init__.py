"""From predictions to files."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from df2serve.writers._names import relative_names as relative_names
    from df2serve.writers.figures import draw_ranking as draw_ranking
    from df2serve.writers.folder import ResultFolder as ResultFolder
    from df2serve.writers.folder import Written as Written
    from df2serve.writers.folder import read_results as read_results
    from df2serve.writers.folder import redescribe as redescribe
    from df2serve.writers.geojson import geojson as geojson
    from df2serve.writers.instances import write_instance_table as write_instance_table
    from df2serve.writers.records import Record as Record
    from df2serve.writers.records import RunInfo as RunInfo
    from df2serve.writers.report import write_report as write_report
    from df2serve.writers.review import ReviewList as ReviewList
    from df2serve.writers.review import review as review
    from df2serve.writers.rois import roi_zip as roi_zip
    from df2serve.writers.tables import failure_row as failure_row
    from df2serve.writers.tables import ranking_rows as ranking_rows
    from df2serve.writers.tables import score_row as score_row
    from df2serve.writers.tables import write_changes as write_changes
    from df2serve.writers.tables import write_table as write_table
    from df2serve.writers.tiff import TiffRowWriter as TiffRowWriter
    from df2serve.writers.tiff import write_labels as write_labels
    from df2serve.writers.tiff import write_mask as write_mask
else:
    # who writes results need not wait for what draws figures and makes spreadsheets
    import lazy_loader

    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "_names": ["relative_names"],
            "figures": ["draw_ranking"],
            "folder": ["ResultFolder", "Written", "read_results", "redescribe"],
            "geojson": ["geojson"],
            "instances": ["write_instance_table"],
            "records": ["Record", "RunInfo"],
            "report": ["write_report"],
            "review": ["ReviewList", "review"],
            "rois": ["roi_zip"],
            "tables": ["failure_row", "ranking_rows", "score_row", "write_changes", "write_table"],
            "tiff": ["TiffRowWriter", "write_labels", "write_mask"],
        },
    )

__all__ = [
    "Record",
    "ResultFolder",
    "ReviewList",
    "RunInfo",
    "TiffRowWriter",
    "Written",
    "draw_ranking",
    "failure_row",
    "geojson",
    "ranking_rows",
    "read_results",
    "redescribe",
    "relative_names",
    "review",
    "roi_zip",
    "score_row",
    "write_changes",
    "write_instance_table",
    "write_labels",
    "write_mask",
    "write_report",
    "write_table",
]
