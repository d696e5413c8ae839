-- HL7 v2 ADT messages to destinations that correct their own copy of a study. The delivery of each
-- is of kind 'hl7'; its subject is the number here.
CREATE TABLE announcement (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  destination  INTEGER NOT NULL REFERENCES destination (id) ON DELETE CASCADE,
  study        INTEGER NOT NULL REFERENCES study (id),
  correction   INTEGER NOT NULL REFERENCES correction (id),
  trigger      TEXT NOT NULL,              -- Trigger: A08 or A40
  patient      TEXT NOT NULL,              -- JSON: the patient as the order names them
  former_id    TEXT NOT NULL DEFAULT '',   -- the ID that was given up, with A40
  former_issuer TEXT NOT NULL DEFAULT '',
  made_ms      INTEGER NOT NULL
) STRICT;
CREATE INDEX announcement_correction ON announcement (correction);
