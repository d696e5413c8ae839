"""A node as an installer makes it: by the command line alone, in a directory of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import psutil
from harness import fault, sender, trace
from harness.browser import Browser
from harness.waiting import free_port, until

ADMIN_PASSWORD = "correct horse battery staple"
PROGRAM = Path(sys.executable).with_name("edgepacs")


class CommandFailed(AssertionError):
    """A command of the node ended with another exit code than 0."""

    def __init__(self, run: subprocess.CompletedProcess[str]) -> None:
        super().__init__(f"{run.args} ended with {run.returncode}: {run.stderr.strip()}")
        self.run = run


class Box:
    """One node in `directory`. The processes run in one group of their own and always end."""

    def __init__(self, directory: Path, *, ae_title: str = "EDGEPACS") -> None:
        self.directory = directory
        self.ae_title = ae_title
        self.config = directory / "edgepacs.toml"
        self.data = directory / "data"
        self.temporary = directory.with_name(directory.name + "-tmp")
        self.log = directory.with_name(directory.name + ".log")
        self.dicom_port = free_port()
        self.http_port = free_port()
        self.init_output = ""
        self._serve: subprocess.Popen[bytes] | None = None
        self.temporary.mkdir()

    # -- making

    @classmethod
    def made(cls, directory: Path, *, ae_title: str = "EDGEPACS") -> "Box":
        """A node made by `init`, listening on loopback only, that knows HARNESS and STORESCU."""
        box = cls(directory, ae_title=ae_title)
        box.init_output = box.run(
            *("init", str(directory), "--ae-title", ae_title),
            *("--dicom-port", str(box.dicom_port), "--http-port", str(box.http_port)),
            "--admin-password-stdin",
            stdin=ADMIN_PASSWORD + "\n",
            configured=False,
        ).stdout
        box.configure(r'(\[dicom\][^\[]*?host = )"0\.0\.0\.0"', r'\1"127.0.0.1"')
        for calling in ("HARNESS", "STORESCU", "ECHOSCU"):
            box.allow(calling)
        return box

    @classmethod
    def copied(cls, template: "Box", directory: Path) -> "Box":
        """A stopped node copied with its keys, on ports of its own: quicker than a new one."""
        box = cls(directory, ae_title=template.ae_title)
        shutil.copytree(template.directory, directory)
        box.configure(rf"port = {template.dicom_port}\b", f"port = {box.dicom_port}")
        box.configure(rf"port = {template.http_port}\b", f"port = {box.http_port}")
        return box

    def configure(self, pattern: str, replacement: str) -> None:
        """Edit edgepacs.toml; AssertionError when `pattern` is not there."""
        text, changes = re.subn(pattern, replacement, self.config.read_text())
        assert changes, f"{pattern!r} is not in edgepacs.toml"
        self.config.write_text(text)

    def compress(self, workers: int) -> None:
        """Compress at rest with so many workers from the next start on; 0 for not at all."""
        self.configure(r"(?m)^workers = \S+", f"workers = {workers}")

    def allow(self, calling: str, *, host: str = "127.0.0.1", port: int = 0) -> None:
        """Make `calling` known as a modality at `host`."""
        at = ("--host", host, "--port", str(port or free_port()))
        self.cli("ae", "add", calling, *at, "--allow", "echo,store")

    def send_to(self, name: str, *, ae: str, port: int) -> None:
        """Add a destination on loopback, and a rule that sends everything to it if none does."""
        self.cli("destination", "add", name, "--ae", ae, "--host", "127.0.0.1", "--port", str(port))

    # -- commands

    def env(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The child's environment: nothing of the test runner's but what programs need."""
        passed_on = ("PATH", "LANG", "VIRTUAL_ENV", "PYTHONPATH")
        kept = {name: os.environ[name] for name in passed_on if name in os.environ}
        return {
            **kept,
            "HOME": str(self.temporary),
            "TMPDIR": str(self.temporary),
            "PYTHONDONTWRITEBYTECODE": "1",
            **(more or {}),
        }

    def command(self, *args: str, configured: bool = True) -> list[str]:
        """The command line of one edgepacs command."""
        assert PROGRAM.exists(), f"{PROGRAM} is missing: install the package"
        return [str(PROGRAM), *(("--config", str(self.config)) if configured else ()), *args]

    def run(
        self,
        *args: str,
        stdin: str = "",
        configured: bool = True,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end; raises CommandFailed unless `check` is off."""
        run = subprocess.run(
            self.command(*args, configured=configured),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=self.temporary,
            env=self.env(env),
        )
        if check and run.returncode:
            raise CommandFailed(run)
        return run

    def cli(self, *args: str, stdin: str = "") -> Any:
        """The decoded `--json` output of one command; None where it printed nothing."""
        out = self.run(*args, "--json", stdin=stdin).stdout.strip()
        return json.loads(out) if out else None

    # -- running

    def start(self, *, env: Mapping[str, str] | None = None, traced: Path | None = None) -> "Box":
        """Start `serve` and wait until it is healthy and answers C-ECHO."""
        self.launch(env=env, traced=traced)
        until(self.ready, "the node is ready", seconds=90 if traced else 40, every=0.1)
        return self

    def launch(self, *, env: Mapping[str, str] | None = None, traced: Path | None = None) -> None:
        """Start `serve` and return at once."""
        assert self._serve is None, "already running"
        prefix = trace.command(traced) if traced else []
        with self.log.open("ab") as log:
            self._serve = subprocess.Popen(
                [*prefix, *self.command("serve")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.temporary,
                env=self.env(env),
                start_new_session=True,
            )

    def ready(self) -> bool:
        """Whether the web is healthy and C-ECHO works; AssertionError once the node has ended."""
        self.require_running()
        return Browser(self.http_port).healthy() and sender.echo(
            self.dicom_port, called=self.ae_title
        )

    def require_running(self) -> None:
        """AssertionError, with the end of its log, once `serve` has ended."""
        assert self._serve is not None, "not started"
        code = self._serve.poll()
        assert code is None, f"serve ended with {code}: {self.log_text()[-1500:]}"

    @property
    def group(self) -> int:
        """The process group of `serve` and all its children."""
        assert self._serve is not None, "not started"
        return self._serve.pid

    def pids(self) -> list[int]:
        """Every process of the node."""
        return fault.members(self.group)

    def kill(self) -> None:
        """SIGKILL to every process of the node at once."""
        if self._serve is not None:
            fault.kill_group(self.group)
            self._serve.wait()
            self._serve = None

    def stop(self, *, seconds: float = 20.0) -> int:
        """SIGTERM to `serve`; its exit code. AssertionError when a process stays behind."""
        assert self._serve is not None, "not started"
        process, group = self._serve, self.group
        target = psutil.Process(process.pid)
        if target.name() == "strace":
            (target,) = target.children()
        target.terminate()
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"serve did not end within {seconds:g} s of SIGTERM") from None
        self._serve = None
        left = fault.members(group)
        if left:
            fault.kill_group(group)
        assert not left, f"processes left behind: {left}"
        return code

    def restart(self, *, env: Mapping[str, str] | None = None) -> "Box":
        """Stop and start again."""
        self.stop()
        return self.start(env=env)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # -- looking

    def log_text(self) -> str:
        """Everything the processes printed so far."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def browser(self, *, token: str = "") -> Browser:
        """An HTTP client that is not logged in, or carries a bearer token."""
        return Browser(self.http_port, token=token)

    def login(self, user: str = "admin", password: str = ADMIN_PASSWORD) -> Browser:
        """A logged-in HTTP client."""
        browser = self.browser()
        browser.login(user, password)
        return browser

    def objects(self) -> list[Path]:
        """Every sealed object; the empty ones are blanks kept at hand."""
        files = (path for path in (self.data / "objects").glob("*/*") if path.is_file())
        return sorted(path for path in files if path.stat().st_size)


def scanned(boxes: Iterable[Box]) -> list[Path]:
    """Where a node may leave anything on a disk: its directory, temporary files and log."""
    return [path for box in boxes for path in (box.directory, box.temporary, box.log)]
