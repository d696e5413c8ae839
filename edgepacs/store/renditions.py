"""Renditions: instances in another transfer syntax, sealed until they are sent.

They lie in vaults of their own, are named by no row and outlive no process: what a crash leaves
is removed when the next one begins. So nothing else ever takes one for an instance.
"""

import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from edgepacs.model import UID, ObjectId
from edgepacs.store import Store
from edgepacs.store.files import storage_error
from edgepacs.store.vault import ObjectReader, ObjectWriter, Vault
from edgepacs.telemetry import log

_making = threading.Lock()


@dataclass(frozen=True, slots=True)
class Rendition:
    """One sealed rendition; `sop_instance_uid` is what its data set is bound to."""

    object_id: ObjectId
    sop_instance_uid: UID


class Renditions:
    """The renditions below `root`, for the one process that makes them."""

    def __init__(self, store: Store, root: Path) -> None:
        self._store = store
        self._root = root
        self._vault = Vault(self._root, store.keystore, store.config.node.reserve_mib << 20)

    def clear(self) -> None:
        """Remove whatever an earlier process has left."""
        shutil.rmtree(self._root, ignore_errors=True)

    def new(self, sop_instance_uid: UID) -> ObjectWriter:
        """Begin one; raises NoRoom below the reserve, StorageFault."""
        with _making:
            if not (self._root / "lock").exists():  # what is made last
                try:
                    Vault.create(self._root)
                except OSError as error:
                    raise storage_error(error) from error
        return self._vault.new(sop_instance_uid)

    def finish(self, writer: ObjectWriter, study_uid: UID, sop_uid: UID) -> Rendition:
        """Seal what was written, under the key of its study; raises NoRoom, StorageFault."""
        key_id, key = self._store.keystore.ensure_study_key(study_uid)
        writer.finish(key_id, key, {"sop_instance_uid": sop_uid})
        return Rendition(writer.object_id, sop_uid)

    def open(self, rendition: Rendition) -> ObjectReader:
        """Open one for reading; raises NotFound, Tampered."""
        return self._vault.open(rendition.object_id, rendition.sop_instance_uid)

    def remove(self, rendition: Rendition) -> None:
        """Delete one; whoever reads it reads on. Where that fails it stays until the next start."""
        try:
            self._vault.remove(rendition.object_id)
        except OSError as error:
            log.warning("a rendition stays until the next start: %s", error.strerror)
