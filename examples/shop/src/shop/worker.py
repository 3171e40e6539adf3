"""The packing room: a process of its own that packs what has been ordered."""

from __future__ import annotations

import threading

from shop import bell, database, orders
from shop.settings import Settings

#: Seconds between two looks at an empty queue.
PAUSE = 0.1


def work(settings: Settings, stop: threading.Event) -> None:
    """Pack orders until told to stop."""
    print("worker: packing orders from", settings.database, flush=True)
    while not stop.is_set():
        with database.transaction(settings.database) as open_database:
            number = orders.pack_next(open_database)
        if number is None:
            _wait(settings, stop)
        else:
            print(f"worker: packed order {number}", flush=True)


def _wait(settings: Settings, stop: threading.Event) -> None:
    """Until there may be another order."""
    try:
        if settings.redis:
            bell.wait(settings.redis, seconds=1)
            return
    except OSError as error:
        print("worker: the bell is broken:", error, flush=True)
    stop.wait(PAUSE)
