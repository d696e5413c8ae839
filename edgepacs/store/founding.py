"""Founding a node: its folder, keys, encrypted index and first administrator."""

from dataclasses import dataclass
from pathlib import Path

from edgepacs import config
from edgepacs.errors import Conflict
from edgepacs.model import Role
from edgepacs.store import Paths, certificate, keystore, rules, users
from edgepacs.store.db import Database
from edgepacs.store.files import sync_directory, write_private
from edgepacs.store.vault import Vault

ADMIN = "admin"
CONFIG_NAME = "edgepacs.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Founded:
    """What the founder must be told, once. `password` is None where the founder chose it."""

    config_path: Path
    user: str
    password: str | None
    recovery_key: str


def create_node(
    folder: Path, *, title: str, dicom_port: int, http_port: int, password: str | None
) -> Founded:
    """Make a node in `folder`, which may exist but must not hold one; durable on return.

    Without a `password` the administrator gets a one-time password, to be changed at the first
    login. Raises Conflict when there is a node already, InvalidValue for bad values.
    """
    text = config.render(title=title, dicom_port=dicom_port, http_port=http_port)
    one_time = users.one_time_password() if password is None else None
    chosen = users.acceptable(password or one_time or "")
    config_path = folder / CONFIG_NAME
    paths = Paths(folder / "data")
    for existing in (config_path, paths.data_dir):
        if existing.exists():
            raise Conflict(f"{existing}: exists already; nothing was changed")
    for made in (folder, paths.data_dir, folder / "keys"):
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
    device, recovery = keystore.new_key(), keystore.new_key()
    write_private(folder / "keys" / "device.key", device)
    keys = keystore.Keystore.create(paths.keystore, device, recovery)
    Vault.create(paths.objects)
    create_index(paths.index, keys.index_key(), chosen, one_time=password is None)
    certificate.create(folder / "tls")
    write_private(config_path, text.encode())
    for changed in (paths.data_dir, folder / "keys", folder / "tls", folder, folder.parent):
        sync_directory(changed)
    return Founded(
        config_path=config_path,
        user=ADMIN,
        password=one_time,
        recovery_key=keystore.recovery_text(recovery),
    )


def create_index(path: Path, key: bytes, password: str, *, one_time: bool) -> None:
    """Make an empty index with its first administrator and the rule that sends all everywhere."""
    db = Database(path, key)
    db.migrate()
    with db.write() as tx:
        users.add(
            tx, name=ADMIN, role=Role.ADMIN, password=password, one_time=one_time, actor="init"
        )
        rules.add(tx, to="*", match="", hold=False, priority=0, actor="init")
    db.close()
