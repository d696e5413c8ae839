"""What the installer decides: `edgepacs.toml` as frozen dataclasses.

Unknown keys, wrong types and values out of range end in one ConfigurationError that names the
file, the section and the key. Destinations, rules, AE titles and users live in the index.
"""

import ipaddress
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, NewType

import cattrs
from cattrs.errors import ClassValidationError
from cattrs.gen import make_dict_structure_fn

from edgepacs.errors import ConfigurationError, InvalidValue
from edgepacs.model import AETitle, ae_title

_DEFAULT_TITLE = AETitle("EDGEPACS")


class KeySource(StrEnum):
    """Where the device key comes from at start."""

    FILE = "file"
    CREDENTIAL = "credential"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Who this node is and where it keeps what it is given."""

    ae_title: AETitle = _DEFAULT_TITLE
    aliases: list[AETitle] = field(default_factory=list)
    data_dir: Path = Path("data")
    reserve_mib: int = 256  # below this much free space, C-STORE is answered A700


@dataclass(frozen=True, slots=True, kw_only=True)
class Dicom:
    """The DICOM listener."""

    host: str = "0.0.0.0"  # noqa: S104  modalities come from the network
    port: int = 11112
    tls_port: int = 0
    max_associations: int = 64
    max_object_mib: int = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class Web:
    """The web server, on a loopback address only: TLS is nginx's (docs/operations.md)."""

    host: str = "127.0.0.1"
    port: int = 8080
    max_upload_mib: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Hl7:
    """The HL7 v2 listeners, plain and TLS; port 0 is off (docs/operations.md).

    `hosts` are the addresses and names that may connect, none standing for any. `mapping` is a
    TOML file that says where senders put things. `authority` holds PEM certificates: with it only
    clients with a certificate from there may connect by TLS. Both are relative to the
    configuration's folder, "" for none.
    """

    host: str = "0.0.0.0"  # noqa: S104
    port: int = 0
    tls_port: int = 0
    hosts: list[str] = field(default_factory=list)
    mapping: str = ""
    authority: str = ""
    max_connections: int = 16
    max_message_kib: int = 1024
    idle_seconds: int = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """How the device key is found. `file` counts only for source = "file"."""

    source: KeySource = KeySource.FILE
    file: Path = Path("keys/device.key")


Workers = NewType("Workers", int)  # "auto" in the file
_AUTO = "auto"


def _workers_for_this_machine() -> Workers:
    """One where a core is a good part of the machine, two where it is not."""
    return Workers(2 if len(os.sched_getaffinity(0)) > 4 else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """Compression at rest, without loss, behind the acknowledgement (docs/operations.md).

    `workers` are processes, 0 for none. `cpu_percent` is of one core, for each of them.
    `before_ack` is for media so slow that fewer bytes beat less work. `jpeg_xl` adds a transfer
    syntax that few peers know.
    """

    workers: Workers = field(default_factory=_workers_for_this_machine, metadata={"written": _AUTO})
    cpu_percent: int = 100
    before_ack: bool = False
    jpeg_xl: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """When bytes that have provably arrived elsewhere may go from here (docs/operations.md).

    `high` and `low` are percent of the file system in use: above the one studies go, oldest
    first, until the other is reached; at 100 none ever does. `keep_days` is the least age.
    """

    high: int = 80
    low: int = 70
    keep_days: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One node's configuration. Relative paths are relative to the configuration's folder."""

    path: Path
    node: Node
    dicom: Dicom
    web: Web
    hl7: Hl7
    keys: Keys
    compression: Compression
    retention: Retention

    @property
    def data_dir(self) -> Path:
        """The absolute data directory."""
        return self.path.parent / self.node.data_dir

    @property
    def hl7_mapping(self) -> Path | None:
        """The absolute path of the HL7 mapping file, if there is one."""
        return self.path.parent / self.hl7.mapping if self.hl7.mapping else None

    @property
    def hl7_authority(self) -> Path | None:
        """The absolute path of the certificates HL7 clients must come from, if there is one."""
        return self.path.parent / self.hl7.authority if self.hl7.authority else None

    @property
    def device_key_file(self) -> Path:
        """The absolute path of the device key, for source = "file"."""
        return self.path.parent / self.keys.file


_SECTIONS: dict[str, type] = {
    "node": Node,
    "dicom": Dicom,
    "web": Web,
    "hl7": Hl7,
    "keys": Keys,
    "compression": Compression,
    "retention": Retention,
}


def load(path: Path) -> Config:
    """Read, structure and check the configuration at `path`; raises ConfigurationError."""
    path = path.absolute()
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path}: no such configuration; `edgepacs init` makes one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from error
    config = _structure(path, document)
    for section, key, problem in _problems(config):
        raise ConfigurationError(f"{path}: [{section}] {key}: {problem}")
    return config


def _structure(path: Path, document: dict[str, Any]) -> Config:
    for name, value in document.items():
        if name not in _SECTIONS:
            raise ConfigurationError(f"{path}: [{name}]: unknown section")
        if not isinstance(value, dict):
            raise ConfigurationError(f"{path}: {name}: must be a section, [{name}]")
    made = {
        name: _structure_section(path, name, document.get(name, {}), kind)
        for name, kind in _SECTIONS.items()
    }
    return Config(path=path, **made)


def _structure_section(path: Path, name: str, values: dict[str, Any], kind: type) -> Any:
    known = [f.name for f in fields(kind)]
    for key in values:
        if key not in known:
            allowed = ", ".join(known)
            raise ConfigurationError(f"{path}: [{name}] {key}: unknown key; known are {allowed}")
    try:
        return _converter.structure(values, kind)
    except ClassValidationError as error:
        cause, notes = error.group_exceptions()
        note = notes or ()
        for exception, where in cause:
            raise ConfigurationError(f"{path}: [{name}] {where.name}: {exception}") from error
        raise ConfigurationError(f"{path}: [{name}]: {note}") from error


def _strictly(kind: type, word: str) -> Any:
    def structure(value: Any, _: type) -> Any:
        if type(value) is not kind:
            message = f"must be {word}"
            raise TypeError(message)
        return value

    return structure


def _path(value: Any, _: type) -> Path:
    return Path(_strictly(str, "a path in quotes")(value, str))


def _title(value: Any, _: type) -> AETitle:
    return ae_title(_strictly(str, "text in quotes")(value, str))


def _titles(value: Any, _: type) -> list[AETitle]:
    return [_title(one, str) for one in _strictly(list, "a list of texts in quotes")(value, list)]


def _texts(value: Any, _: type) -> list[str]:
    given = _strictly(list, "a list of texts in quotes")(value, list)
    return [_strictly(str, "a list of texts in quotes")(one, str) for one in given]


def _workers(value: Any, _: type) -> Workers:
    if value == _AUTO:
        return _workers_for_this_machine()
    return Workers(_strictly(int, f'a whole number, or "{_AUTO}"')(value, int))


def _key_source(value: Any, _: type) -> KeySource:
    if value not in list(KeySource):
        message = f"must be one of {', '.join(KeySource)}"
        raise ValueError(message)
    return KeySource(value)


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=True)
    converter.register_structure_hook(int, _strictly(int, "a whole number"))
    converter.register_structure_hook(str, _strictly(str, "text in quotes"))
    converter.register_structure_hook(bool, _strictly(bool, "true or false"))
    converter.register_structure_hook(Path, _path)
    converter.register_structure_hook(KeySource, _key_source)
    converter.register_structure_hook_func(lambda kind: kind is AETitle, _title)
    converter.register_structure_hook_func(lambda kind: kind is Workers, _workers)
    converter.register_structure_hook_func(lambda kind: kind == list[AETitle], _titles)
    converter.register_structure_hook_func(lambda kind: kind == list[str], _texts)
    for kind in _SECTIONS.values():
        converter.register_structure_hook(kind, make_dict_structure_fn(kind, converter))
    return converter


_converter = _make_converter()


def _problems(config: Config) -> Iterator[tuple[str, str, str]]:
    """Every value out of its range, as section, key and problem."""
    ports = (
        ("dicom", "port", config.dicom.port),
        ("dicom", "tls_port", config.dicom.tls_port),
        ("web", "port", config.web.port),
        ("hl7", "port", config.hl7.port),
        ("hl7", "tls_port", config.hl7.tls_port),
    )
    for section, key, port in ports:
        if not 0 <= port <= 65535:
            yield section, key, f"{port} is not a port (0 to 65535)"
    for section, key, value, low, high in (
        ("node", "reserve_mib", config.node.reserve_mib, 0, 1 << 30),
        ("dicom", "max_associations", config.dicom.max_associations, 1, 1024),
        ("dicom", "max_object_mib", config.dicom.max_object_mib, 1, 1 << 20),
        ("web", "max_upload_mib", config.web.max_upload_mib, 1, 1 << 20),
        ("compression", "workers", config.compression.workers, 0, 64),
        ("compression", "cpu_percent", config.compression.cpu_percent, 1, 100),
        ("hl7", "max_connections", config.hl7.max_connections, 1, 256),
        ("hl7", "max_message_kib", config.hl7.max_message_kib, 1, 1 << 16),
        ("hl7", "idle_seconds", config.hl7.idle_seconds, 1, 86400),
        ("retention", "high", config.retention.high, 1, 100),
        ("retention", "low", config.retention.low, 0, config.retention.high),
        ("retention", "keep_days", config.retention.keep_days, 0, 36500),
    ):
        if not low <= value <= high:
            yield section, key, f"{value} is not between {low} and {high}"
    for key, named in (("mapping", config.hl7_mapping), ("authority", config.hl7_authority)):
        if named is not None and not named.is_file():
            yield "hl7", key, f"{named} is not a file"
    if not _is_loopback(config.web.host):
        yield "web", "host", "must be a loopback address; plain HTTP never leaves this machine"
    if not config.data_dir.is_dir():
        yield "node", "data_dir", f"{config.data_dir} is not a directory"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def render(*, title: str, dicom_port: int, http_port: int) -> str:
    """The text of a new `edgepacs.toml`; raises InvalidValue for what `load` would refuse."""
    for name, port in (("DICOM port", dicom_port), ("HTTP port", http_port)):
        if not 0 <= port <= 65535:
            raise InvalidValue(name, f"{port} is not a port (0 to 65535)")
    return _TEMPLATE.format(
        title=ae_title(title).replace('"', '\\"'), dicom_port=dicom_port, http_port=http_port
    )


_TEMPLATE = """\
# EdgePACS: what the installer decides. AE titles, destinations, rules and users live in the
# index: `edgepacs --config THIS ae|destination|rule|user ...`. See docs/operations.md.
[node]
ae_title = "{title}"
data_dir = "data"         # relative to this file

[dicom]
host = "0.0.0.0"
port = {dicom_port}
tls_port = 0              # 2762 where DICOM TLS is on

[web]
host = "127.0.0.1"        # loopback only; nginx terminates TLS
port = {http_port}

[hl7]
host = "0.0.0.0"
port = 0                  # 2575 where HL7 is on
tls_port = 0              # another port, where it is to come by TLS
hosts = []                # addresses or names that may connect; none for any
mapping = ""              # a TOML file: what senders put elsewhere (docs/operations.md)

[keys]
source = "file"           # file | credential
file = "keys/device.key"  # keep it off the disk that holds data_dir

[compression]             # at rest, without loss; every pixel and every byte comes back
workers = "auto"          # processes behind the answer: 1, above 4 cores 2; or a number, 0 is off
cpu_percent = 100         # of one core, for each of them
before_ack = false        # true: before the modality is answered, for slow flash
jpeg_xl = false           # true: JPEG XL too, where it is smallest; few peers know it

[retention]               # what has provably arrived everywhere may go; nothing else ever does
high = 80                 # percent of the disk in use from which on; 100: never
low = 70                  # until that much is in use
keep_days = 1             # not before
"""
