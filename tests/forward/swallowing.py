"""Black holes on loopback: a socket whose kernel drops every segment that comes, without a RST.

A filter on a TCP socket is asked before the protocol is, so that nothing answers: neither to a
SYN on a listening socket nor to data on a connected one.
"""

import ctypes
import socket
import struct

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_DROP = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF: return 0, keep no byte of it


def swallow(sock: socket.socket) -> None:
    program = ctypes.create_string_buffer(_DROP)
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program))
    )


def let_through(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
