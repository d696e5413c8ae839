"""Run the tests with their full counts and keep the log: `soak.py [pytest argument ...]`.

The log is docs/evidence/soak-DATE-COMMIT.log; it begins with the commit, whether the checkout
differed from it, and the machine, and ends with pytest's own summary.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVIDENCE = ROOT / "docs" / "evidence"


def git(*arguments: str) -> str:
    """What git prints for `arguments`."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> Iterator[str]:
    """The machine in a few lines."""
    system = platform.freedesktop_os_release()["PRETTY_NAME"]
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in cpuinfo if "model name" in line), "unknown")
    yield f"machine  {platform.machine()}, {os.cpu_count()} cores, {model}"
    yield f"system   {system}, Linux {platform.release()}, Python {platform.python_version()}"


def main() -> int:
    """Run pytest, copy its output to the log and the terminal; its exit status."""
    begin = datetime.now(UTC)
    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    head = [f"commit   {commit}{' with local changes' if changed else ''}", *machine()]
    head.append(f"begin    {begin:%Y-%m-%dT%H:%M:%SZ}")
    EVIDENCE.mkdir(parents=True, exist_ok=True)
    path = EVIDENCE / f"soak-{begin:%Y%m%d}-{commit[:10]}.log"
    with path.open("w") as log:
        log.write("\n".join(head) + "\n\n")
        tests = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-v", "--durations=25", *sys.argv[1:]],
            cwd=ROOT,
            env=os.environ | {"EDGEPACS_SOAK": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert tests.stdout is not None
        for line in tests.stdout:
            sys.stdout.write(line)
            log.write(line.replace(f"{ROOT}/", "").replace(str(ROOT), "."))
        status = tests.wait()
        log.write(f"\nend      {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}, status {status}\n")
    print(f"\nThe log: {path.relative_to(ROOT)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
