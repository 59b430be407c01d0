"""The program of a worker process.

It says that it lives before it loads the engines, which takes minutes on a machine that is busy.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from df2serve.service.logs import configure_logs
from df2serve.service.messages import Alive, Report

_BEAT_SECONDS = 2.0


def main(descriptor: int) -> None:
    """Serve the other end of a socket until it is closed."""
    connection = socket.socket(fileno=descriptor)
    lock = threading.Lock()

    def send(report: Report) -> None:
        line = report.model_dump_json().encode() + b"\n"
        with lock:
            connection.sendall(line)

    threading.Thread(target=_beat, args=[send], daemon=True).start()
    from df2serve.service.worker.loop import serve

    serve(connection.makefile("rb"), send)


def _beat(send: Callable[[Report], None]) -> None:
    """Say now and then that this process is alive, while somebody listens."""
    with suppress(OSError):
        while True:
            send(Alive())
            time.sleep(_BEAT_SECONDS)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    configure_logs(os.environ["DF2SERVE_LOG_FORMAT"])
    try:
        with suppress(ConnectionError):  # nobody listens any more
            main(int(sys.argv[1]))
    except Exception:
        logging.exception("the worker ends")
    finally:
        # whoever asked is gone: nothing that threads still compute can be delivered
        os._exit(0)
