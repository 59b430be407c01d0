"""From predictions to files."""

from df2serve.writers._names import relative_names
from df2serve.writers.figures import draw_ranking
from df2serve.writers.folder import ResultFolder, Written, read_results
from df2serve.writers.instances import write_instance_table
from df2serve.writers.records import Record, RunInfo
from df2serve.writers.review import ReviewList, review
from df2serve.writers.tables import failure_row, ranking_rows, score_row, write_table
from df2serve.writers.tiff import TiffRowWriter

__all__ = [
    "Record",
    "ResultFolder",
    "ReviewList",
    "RunInfo",
    "TiffRowWriter",
    "Written",
    "draw_ranking",
    "failure_row",
    "ranking_rows",
    "read_results",
    "relative_names",
    "review",
    "score_row",
    "write_instance_table",
    "write_table",
]
