"""The store: encrypted index, sealed objects and keys; the only user of SQL and ciphers.

`Store` is what a role opens once and hands on; the modules beside it hold what can be done.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edgepacs.config import Config
from edgepacs.errors import ConfigurationError
from edgepacs.store.db import Database
from edgepacs.store.group import GroupCommit
from edgepacs.store.incidents import Incidents
from edgepacs.store.keystore import Keystore, device_key
from edgepacs.store.vault import Vault
from edgepacs.telemetry import doorbell


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the parts of a store lie (docs/format.md)."""

    data_dir: Path

    @property
    def keystore(self) -> Path:
        """The keystore."""
        return self.data_dir / "keystore"

    @property
    def index(self) -> Path:
        """The encrypted index."""
        return self.data_dir / "index.db"

    @property
    def objects(self) -> Path:
        """The vault of sealed objects."""
        return self.data_dir / "objects"

    @property
    def renditions(self) -> Path:
        """The vault of renditions on their way to destinations, which outlive no process."""
        return self.data_dir / "renditions"

    @property
    def retrievals(self) -> Path:
        """The vault of renditions for whoever retrieves them, which outlive no process."""
        return self.data_dir / "retrievals"

    def doorbell(self, role: str) -> Path:
        """The FIFO that wakes `role`."""
        return self.data_dir / "run" / f"{role}.bell"


@dataclass(frozen=True, slots=True)
class Store:
    """One node's store, open."""

    config: Config
    keystore: Keystore
    db: Database
    vault: Vault
    group: GroupCommit
    incidents: Incidents

    @property
    def paths(self) -> Paths:
        """Where its parts lie."""
        return Paths(self.config.data_dir)

    @classmethod
    def unlock(cls, config: Config, outer_key: bytes | None = None) -> Self:
        """Open with the device key (or a recovery key); the schema may be of any version.

        Raises ConfigurationError, WrongKey, Tampered.
        """
        paths = Paths(config.data_dir)
        keystore = Keystore.open(paths.keystore, outer_key or device_key(config))
        if not paths.index.exists():
            raise ConfigurationError(
                f"{paths.index}: the index is missing; `edgepacs rebuild` makes it again"
            )
        db = Database(paths.index, keystore.index_key())
        vault = Vault(paths.objects, keystore, config.node.reserve_mib << 20)
        incidents = Incidents(db, vault.condemn)
        return cls(config, keystore, db, vault, GroupCommit(db), incidents)

    @classmethod
    def open(cls, config: Config) -> Self:
        """Open for work: as `unlock`, and the schema must be this code's."""
        store = cls.unlock(config)
        store.db.require_current()
        return store

    def ring(self, role: str) -> None:
        """Wake `role`: there is something for it to do. Losing this is harmless."""
        with contextlib.suppress(OSError):  # what was committed stays committed
            doorbell(self.paths.doorbell(role)).ring()

    def close(self) -> None:
        """Record what has been counted and close the index."""
        self.incidents.close()
        self.db.close()


@contextlib.contextmanager
def opened(config: Config) -> Iterator[Store]:
    """A store for as long as the block runs."""
    store = Store.open(config)
    try:
        yield store
    finally:
        store.close()
