"""`launcher.py DESCRIPTOR COMMAND...`: run a command under the filter of `faults.syscalls`."""

import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from faults.syscalls import lay_filter


def main() -> None:
    """Lay the filter, hand its listener over, become the command."""
    descriptor, *command = sys.argv[1:]
    with socket.socket(fileno=int(descriptor)) as line:
        listener = lay_filter()
        socket.send_fds(line, [b"+"], [listener])
    os.close(listener)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
