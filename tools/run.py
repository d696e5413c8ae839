"""Run a node from a checkout, in the foreground: what `make run` does once all is installed.

Makes the node on the first run, starts `edgepacs serve` and, with --lan-port, nginx before it,
both in this process group; says where to look as soon as it answers; ends with either of them.
"""

import argparse
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EDGEPACS = Path(sys.executable).parent / "edgepacs"
SIOCGIFADDR = 0x8915  # <linux/sockios.h>
STARTUP_SECONDS = 60
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENDING_SECONDS = 20

NGINX_MAIN = """\
daemon off;
{user}
worker_processes 1;
worker_rlimit_core 0;
pid {prefix}/nginx.pid;
error_log stderr alert;
events {{ worker_connections 512; }}
http {{
    access_log off;
    fastcgi_temp_path {prefix}/no-body-on-disk;
    uwsgi_temp_path {prefix}/no-body-on-disk;
    scgi_temp_path {prefix}/no-body-on-disk;
    include {prefix}/edgepacs.conf;
}}
"""


class Stopped(Exception):
    """A signal asked for the end."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", type=Path, required=True)
    parser.add_argument("--ae-title", required=True)
    parser.add_argument("--dicom-port", required=True)
    parser.add_argument("--http-port", required=True)
    parser.add_argument("--lan-port", type=int, help="serve HTTPS to the network on this port")
    return parser.parse_args()


def make_node(options: argparse.Namespace) -> None:
    """`edgepacs init`; what it prints, passwords among it, is seen this once."""
    command = [EDGEPACS, "init", options.node, "--ae-title", options.ae_title]
    command += ["--dicom-port", options.dicom_port, "--http-port", options.http_port]
    made = subprocess.run(command, check=False)
    if made.returncode:
        sys.exit(made.returncode)


def addresses() -> Iterator[str]:
    """The IPv4 addresses of this machine that other machines may reach, one an interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("40s", name.encode()))
            except OSError:  # it has no address
                continue
            address = socket.inet_ntoa(answer[20:24])
            if not address.startswith("127."):
                yield address


def has_ipv6() -> bool:
    """Whether this machine can listen on IPv6 at all."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def nginx_command(node: Path, upstream: str, port: int) -> list[str]:
    """Write the site and a main configuration into the node; the command that runs nginx."""
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        sys.exit("run: nginx is not installed; `make run LAN=1` installs it")
    if not (node / "tls" / "site.crt").is_file():
        sys.exit(f"run: {node}/tls/site.crt is missing; `edgepacs init` makes it")
    prefix = node / "nginx"
    prefix.mkdir(mode=0o700, exist_ok=True)
    nofile = prefix / "no-body-on-disk"
    nofile.touch(mode=0o600)
    site = (ROOT / "systemd" / "nginx" / "site.conf.in").read_text()
    if not has_ipv6():
        site = site.replace("    listen [::]:@PORT@ ssl;\n", "")
    filled = {"PORT": port, "UPSTREAM": upstream, "TLS": node / "tls", "NOFILE": nofile}
    filled["ACCESS_LOG"] = prefix / "access.log"
    for name, value in filled.items():
        site = site.replace(f"@{name}@", str(value))
    # As root, nginx would hand its workers to another user, who may not read the node.
    user = "user root;" if os.getuid() == 0 else ""
    (prefix / "edgepacs.conf").write_text(site)
    (prefix / "nginx.conf").write_text(NGINX_MAIN.format(prefix=prefix, user=user))
    return [program, "-p", str(prefix), "-c", str(prefix / "nginx.conf"), "-e", "stderr"]


def require_free(settings: dict[str, dict[str, Any]], configuration: Path) -> None:
    """End here, with the place to change, when somebody else listens on a port of ours."""
    for section in ("web", "dicom"):
        host, port = settings[section]["host"], settings[section]["port"]
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                sys.exit(
                    f"run: {host} port {port}: {error.strerror}. "
                    f"Change [{section}] port in {relative(configuration)}."
                )


def wait_until_up(
    settings: dict[str, dict[str, Any]], children: list[subprocess.Popen[bytes]]
) -> None:
    """Return when the web is healthy and the DICOM port open; Stopped when a child ends first."""
    begin = time.monotonic()
    while time.monotonic() - begin < STARTUP_SECONDS:
        if any(child.poll() is not None for child in children):
            raise Stopped
        if is_up(settings):
            return
        time.sleep(0.1)
    print(f"run: it does not answer within {STARTUP_SECONDS} s", file=sys.stderr)
    raise Stopped


def is_up(settings: dict[str, dict[str, Any]]) -> bool:
    """Whether the web says it is healthy and somebody listens for DICOM."""
    web, dicom = settings["web"], settings["dicom"]
    host = "127.0.0.1" if dicom["host"] == "0.0.0.0" else dicom["host"]  # noqa: S104 - compared
    try:
        with urllib.request.urlopen(f"http://{web['host']}:{web['port']}/healthz", timeout=5):
            socket.create_connection((host, dicom["port"]), timeout=5).close()
    except OSError:  # URLError is one
        return False
    return True


def announce(options: argparse.Namespace, settings: dict[str, dict[str, Any]]) -> None:
    """Say where everything is and what to do first."""
    here = list(addresses()) or ["127.0.0.1"]
    title, port = settings["node"]["ae_title"], settings["dicom"]["port"]
    command = f"{relative(EDGEPACS)} --config {relative(options.node)}/edgepacs.toml"
    print(f"\nEdgePACS is up: {title}\n")
    for address in here:
        print(f"  DICOM   {title} at {address} port {port}")
    print(f"  Web     http://127.0.0.1:{settings['web']['port']}/  (this machine only)")
    if options.lan_port:
        for address in here:
            print(f"          https://{address}:{options.lan_port}/")
        print(f"          the browser will ask about {relative(options.node)}/tls/site.crt, once")
    else:
        print("          for tablets on the network: make run LAN=1")
    print("\nNo modality may send yet. To allow one, by its AE title and address:\n")
    print(f"  {command} ae add CT1 --host 192.0.2.10 --port 104\n")
    print("Whoever was refused is listed by `ae list --refused`. Ctrl-C stops everything.\n")
    sys.stdout.flush()


def relative(path: Path) -> Path:
    """`path` as one would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def stop(number: int, frame: FrameType | None) -> None:
    """Signal handler: leave the waiting, once; what asks again disturbs the end no more."""
    del number, frame
    ignore_signals()
    raise Stopped


def ignore_signals() -> None:
    """The children are being ended: there is nothing left to ask for."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def end(children: list[subprocess.Popen[bytes]]) -> int:
    """Ask every child to end and wait for it; the first bad status, as a shell would give it."""
    for child in children:
        if child.poll() is None:
            child.terminate()
        elif child.returncode:
            print(f"run: {child.args!r} ended with {child.returncode}", file=sys.stderr)
    codes = []
    for child in children:
        try:
            codes.append(child.wait(ENDING_SECONDS))
        except subprocess.TimeoutExpired:
            print(f"run: {child.args!r} does not end; killed", file=sys.stderr)
            child.kill()
            codes.append(child.wait())
    bad = next((code for code in codes if code not in (0, -signal.SIGTERM, -signal.SIGINT)), 0)
    return bad if bad >= 0 else 128 - bad


def main() -> int:
    """Make, start, announce, wait, end."""
    options = parse()
    options.node = options.node.absolute()
    configuration = options.node / "edgepacs.toml"
    if not configuration.exists():
        make_node(options)
    settings = tomllib.loads(configuration.read_text())
    require_free(settings, configuration)
    web = f"{settings['web']['host']}:{settings['web']['port']}"
    commands = [[str(EDGEPACS), "--config", str(configuration), "serve"]]
    if options.lan_port:
        commands.append(nginx_command(options.node, web, options.lan_port))
    for number in ENDING:
        signal.signal(number, stop)
    children: list[subprocess.Popen[bytes]] = []
    try:
        children.extend(subprocess.Popen(command) for command in commands)
        wait_until_up(settings, children)
        announce(options, settings)
        while all(child.poll() is None for child in children):
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    except Stopped:
        pass
    ignore_signals()
    return end(children)


if __name__ == "__main__":
    sys.exit(main())
