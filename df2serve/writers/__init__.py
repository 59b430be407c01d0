"""From predictions to files."""

from df2serve.writers._names import relative_names
from df2serve.writers.figures import draw_ranking
from df2serve.writers.folder import ResultFolder, Written, read_results
from df2serve.writers.geojson import geojson
from df2serve.writers.instances import write_instance_table
from df2serve.writers.records import Record, RunInfo
from df2serve.writers.report import write_report
from df2serve.writers.review import ReviewList, review
from df2serve.writers.rois import roi_zip
from df2serve.writers.tables import failure_row, ranking_rows, score_row, write_changes, write_table
from df2serve.writers.tiff import TiffRowWriter, write_labels, write_mask

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
