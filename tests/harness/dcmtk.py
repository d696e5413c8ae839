"""DCMTK's storescu and echoscu as the modality: return code and what became of each file."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

# The proposal option that lets storescu 3.6.7 send each transfer syntax as it stands in the file.
PROPOSALS = {
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.1": "-xe",
    "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.1.99": "-xd",
    "1.2.840.10008.1.2.5": "-xr",
    "1.2.840.10008.1.2.4.50": "-xy",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
    "1.2.840.10008.1.2.4.100": "-xm",
    "1.2.840.10008.1.2.4.101": "-xh",
    "1.2.840.10008.1.2.4.102": "-xn",
    "1.2.840.10008.1.2.4.103": "-xl",
    "1.2.840.10008.1.2.4.104": "-x2",
    "1.2.840.10008.1.2.4.105": "-x3",
    "1.2.840.10008.1.2.4.106": "-xo",
    "1.2.840.10008.1.2.4.107": "-x4",
    "1.2.840.10008.1.2.4.108": "-x5",
}
_SENDING = re.compile(r"^I: Sending file: (.*)$", re.MULTILINE)
_ANSWER = re.compile(r"^[IEW]: Received Store Response \((.*)\)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One run of storescu; `answers` has, by file, the answer it printed ("" for none)."""

    returncode: int
    output: str = field(repr=False)
    answers: dict[Path, str]

    @property
    def acknowledged(self) -> list[Path]:
        """The files answered with Success or a warning."""
        return [path for path, text in self.answers.items() if text.startswith(("Success", "Warn"))]


def require(program: str) -> str:
    """The path of a peer program; AssertionError when it is not installed."""
    found = shutil.which(program)
    assert found, f"{program} is not installed: run `make peers` or leave out -m peers"
    return found


def storescu(
    files: Iterable[Path],
    port: int,
    *,
    proposal: str = "-xe",
    calling: str = "STORESCU",
    called: str = "EDGEPACS",
    seconds: float = 120.0,
) -> Sent:
    """Send `files` in one association, going on after refusals."""
    paths = list(files)
    command = [require("storescu"), "-v", "-nh", "-R", proposal, "-aet", calling, "-aec", called]
    command += ["-to", "10", "-td", "60", "127.0.0.1", str(port), *map(str, paths)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    output = run.stdout + run.stderr
    return Sent(returncode=run.returncode, output=output, answers=_answers(paths, output))


def _answers(paths: list[Path], output: str) -> dict[Path, str]:
    answers = dict.fromkeys(paths, "")
    pieces = _SENDING.split(output)[1:]
    for name, rest in zip(pieces[::2], pieces[1::2], strict=True):
        found = _ANSWER.search(rest)
        answers[Path(name)] = found.group(1) if found else ""
    return answers


def echoscu(port: int, *, calling: str = "ECHOSCU", called: str = "EDGEPACS") -> int:
    """The return code of echoscu: 0 for a successful C-ECHO."""
    command = [require("echoscu"), "-aet", calling, "-aec", called, "-to", "5", "-ta", "5"]
    command += ["127.0.0.1", str(port)]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode
