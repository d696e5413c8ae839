"""Must show 6: 100,000 queued neither delay the start, nor grow the sender, nor slow a page."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from harness import corpus
from harness.box import Box
from harness.recorder import Commitment, RecordingSCP
from harness.waiting import until
from store.making import take_in

from edgepacs import config
from edgepacs.store import Store, opened

pytestmark = pytest.mark.line

_PER_STUDY = 200
_FIRST_SEND_SECONDS = 10.0
_RSS_MIB = 96
_PAGE_SECONDS = 0.3
_WATCHED = 300  # instances sent while the sender's memory is watched


def _fill(box: Box, count: int) -> None:
    """Small instances, taken in below the wire, each with its delivery."""

    def one(number: int, store: Store) -> None:
        study = number // _PER_STUDY
        take_in(
            store, sop=f"2.25.9{number:09d}", study=f"2.25.8{study:09d}", series=f"2.25.7{study}"
        )

    with opened(config.load(box.config)) as store, ThreadPoolExecutor(8) as crew:
        for done in [crew.submit(one, number, store) for number in range(count)]:
            done.result()


def _resident_mib(box: Box, role: str) -> float:
    """Resident memory of the process of a role now; 0 while there is none."""
    for pid in box.pids():
        with suppress(FileNotFoundError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[-2:-1] == [role.encode()]:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                return pages * os.sysconf("SC_PAGESIZE") / 2**20
    return 0.0


def test_a_long_queue_is_no_burden(new_box: Callable[[], Box]):
    box, recorder = new_box(), RecordingSCP("CENTRAL", digests=True)
    recorder.behaviour.commitment = Commitment.SAME
    box.send_to("central", ae=recorder.ae_title, port=recorder.port)
    count = corpus.count(3000, 100_000)
    _fill(box, count)
    with recorder:
        begun = time.monotonic()
        box.launch()
        until(lambda: recorder.total_requests, "the first C-STORE", seconds=60, every=0.005)
        assert time.monotonic() - begun <= _FIRST_SEND_SECONDS
        until(box.ready, "the node is ready", seconds=40)
        browser, pages, memory = box.login(), [], []
        while len(recorder.held()) < min(count, _WATCHED) or len(pages) < 5:
            memory.append(_resident_mib(box, "forward"))
            asked = time.monotonic()
            assert browser.get("/queue").status == 200
            pages.append(time.monotonic() - asked)
            assert time.monotonic() - begun < 120, f"{len(recorder.held())} arrived"
        assert max(memory) <= _RSS_MIB
        assert sorted(pages)[len(pages) // 2] <= _PAGE_SECONDS, pages
