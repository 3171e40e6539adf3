"""The packing room: a process of its own that packs what has been ordered."""

from __future__ import annotations

import threading

from shop import database, orders
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
            stop.wait(PAUSE)
        else:
            print(f"worker: packed order {number}", flush=True)
