"""Worker processes that do not outlive the one that started them."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """End this process as soon as its parent has ended, however that did; call it first in a worker.

    A worker of a pool waits on a pipe whose other end it holds as well: one whose parent was killed would
    wait for ever, and keep its memory.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
