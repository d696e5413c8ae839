"""Guarding a connection we opened against lines that swallow everything: half open, black holes.

TCP alone retries for some fifteen minutes before it gives a connection up, and never where it
only waits to receive.
"""

import contextlib
import socket
from typing import Final

SILENT_SECONDS: Final = 30.0  # longer than the outages a connection should outlive
_ASK_AFTER: Final = 10  # seconds of silence until the kernel asks the other side
_ASK_AGAIN: Final = 5  # seconds between questions
_LONGEST_RETRY_MS: Final = 2000  # between two tries to get the same segment through
_RTO_MAX_MS: Final = 44  # TCP_RTO_MAX_MS of linux/tcp.h; kernels before 6.15 do without


def guard(sock: socket.socket, seconds: float = SILENT_SECONDS) -> None:
    """Break `sock` once its peer has acknowledged nothing for `seconds` though something is due.

    That holds for what was sent (RFC 5482) and, by keepalive questions, while an answer is
    awaited. Then reading or writing raises TimeoutError. A peer that acknowledges but takes
    nothing for so long counts as gone too. Where the kernel can, a segment is also tried again
    every 2 s at the latest, so that a line that returns is in use at once.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    questions = max(1, int((seconds - _ASK_AFTER) / _ASK_AGAIN))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, _ASK_AFTER),
        (socket.TCP_KEEPINTVL, _ASK_AGAIN),
        (socket.TCP_KEEPCNT, questions),
        (socket.TCP_USER_TIMEOUT, int(seconds * 1000)),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, _RTO_MAX_MS, _LONGEST_RETRY_MS)
