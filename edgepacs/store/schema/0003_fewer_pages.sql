-- What a store writes, halved: one index by SOP Instance UID instead of two, none by object (only
-- the sweep asks, for all at once), none by study (the series lead there). And fingerprints name
-- their algorithm: see edgepacs/store/fingerprint.py.

ALTER TABLE instance RENAME COLUMN received_sha256 TO received_digest;
ALTER TABLE instance RENAME COLUMN native_sha256 TO native_digest;
UPDATE instance SET received_digest = unhex('01' || hex(received_digest));

DROP INDEX instance_current;
DROP INDEX instance_uid;
DROP INDEX instance_object;
DROP INDEX instance_study;
-- At most one version stands for a UID.
CREATE UNIQUE INDEX instance_uid
  ON instance (sop_instance_uid, iif(state = 'stored', 0, id));
