"""Workers: threads that serve one connection after the other.

Many modalities open an association for every instance. With threads and buffers that are used
again, one with a C-ECHO costs 0.4 ms of CPU time instead of 0.7 (docs/decisions/0017).
"""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

_IDLE_SECONDS = 10.0  # so long a thread waits for a connection before it ends
Task = Callable[[], None]


class Workers:
    """Runs every task in a thread of its own; a task must not raise."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[Task]] = []  # the one idle for the shortest time last

    def run(self, task: Task) -> None:
        """Run `task` at once; raises RuntimeError where no thread can be had."""
        with self._lock:
            idle = self._idle.pop() if self._idle else None
        if idle is None:
            threading.Thread(target=self._work, args=(task,), daemon=True).start()
        else:
            idle.put(task)

    def _work(self, task: Task) -> None:
        mine: SimpleQueue[Task] = SimpleQueue()
        while True:
            task()
            with self._lock:
                self._idle.append(mine)
            try:
                task = mine.get(timeout=_IDLE_SECONDS)
            except Empty:
                with self._lock:
                    if mine in self._idle:
                        self._idle.remove(mine)
                        return
                task = mine.get()  # chosen at the last moment: it is on its way
