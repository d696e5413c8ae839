-- What a destination gets when a study it has is corrected, and the rejection notes made for it.

ALTER TABLE destination ADD COLUMN correction TEXT NOT NULL DEFAULT 'hold';  -- CorrectionPolicy
ALTER TABLE destination ADD COLUMN adt TEXT NOT NULL DEFAULT '';  -- mllp(s)://HOST:PORT for HL7 ADT

-- A rejection note for one destination, and what waits there until it has arrived.
CREATE TABLE correction_note (
  correction   INTEGER NOT NULL REFERENCES correction (id),
  destination  INTEGER NOT NULL REFERENCES destination (id) ON DELETE CASCADE,
  instance     INTEGER NOT NULL REFERENCES instance (id),
  open         INTEGER NOT NULL DEFAULT 1,  -- 0: it has arrived, or was given up
  PRIMARY KEY (correction, destination)
) STRICT, WITHOUT ROWID;
CREATE INDEX correction_note_open ON correction_note (correction) WHERE open = 1;

-- The correction of a version that was received, whatever UID it stands under.
CREATE INDEX instance_corrects ON instance (corrects) WHERE corrects IS NOT NULL;
