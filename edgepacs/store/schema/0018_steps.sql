-- Performed procedure steps, as modalities tell of them, and messages on their way: what was told is
-- kept as it was received, to be told again to the centre in the same order.

CREATE TABLE step (
  id                INTEGER PRIMARY KEY AUTOINCREMENT,
  sop_instance_uid  TEXT NOT NULL UNIQUE,
  state             TEXT NOT NULL,      -- StepState
  source            TEXT NOT NULL,      -- calling AE title
  patient_id        TEXT NOT NULL,      -- (0010,0020)
  issuer            TEXT NOT NULL,      -- (0010,0021)
  patient_name      TEXT NOT NULL,      -- (0010,0010)
  performed_id      TEXT NOT NULL,      -- (0040,0253)
  modality          TEXT NOT NULL,      -- (0008,0060)
  station_ae        TEXT NOT NULL,      -- (0040,0241)
  station_name      TEXT NOT NULL,      -- (0040,0242)
  description       TEXT NOT NULL,      -- (0040,0254)
  start_date        TEXT NOT NULL,      -- (0040,0244)
  start_time        TEXT NOT NULL,      -- (0040,0245)
  end_date          TEXT NOT NULL,      -- (0040,0250)
  end_time          TEXT NOT NULL,      -- (0040,0251)
  reason            TEXT NOT NULL,      -- (0040,0281) in words
  created_ms        INTEGER NOT NULL,
  changed_ms        INTEGER NOT NULL
) STRICT;

-- The scheduled steps it performs (0040,0270): one, several, or an unscheduled one with a study only.
CREATE TABLE step_order (
  step                INTEGER NOT NULL REFERENCES step (id) ON DELETE CASCADE,
  place               INTEGER NOT NULL,
  study_instance_uid  TEXT NOT NULL,
  accession_number    TEXT NOT NULL,
  procedure_id        TEXT NOT NULL,
  scheduled_id        TEXT NOT NULL,    -- (0040,0009)
  PRIMARY KEY (step, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX step_order_study ON step_order (study_instance_uid);

-- What it says it has made (0040,0340), as last said.
CREATE TABLE step_series (
  step                 INTEGER NOT NULL REFERENCES step (id) ON DELETE CASCADE,
  place                INTEGER NOT NULL,
  series_instance_uid  TEXT NOT NULL,
  description          TEXT NOT NULL,
  protocol             TEXT NOT NULL,
  PRIMARY KEY (step, place)
) STRICT, WITHOUT ROWID;
CREATE TABLE step_instance (
  step              INTEGER NOT NULL REFERENCES step (id) ON DELETE CASCADE,
  sop_instance_uid  TEXT NOT NULL,
  sop_class_uid     TEXT NOT NULL,
  series            INTEGER NOT NULL,   -- the place of its series
  PRIMARY KEY (step, sop_instance_uid)
) STRICT, WITHOUT ROWID;

-- Every N-CREATE and N-SET, whole.
CREATE TABLE step_message (
  id                   INTEGER PRIMARY KEY AUTOINCREMENT,
  step                 INTEGER NOT NULL REFERENCES step (id) ON DELETE CASCADE,
  command              TEXT NOT NULL,   -- 'create' or 'set'
  transfer_syntax_uid  TEXT NOT NULL,
  body                 BLOB NOT NULL,   -- the data set as received
  received_ms          INTEGER NOT NULL
) STRICT;
CREATE INDEX step_message_step ON step_message (step);

-- Instance availability notifications, made once a study and destination.
CREATE TABLE notification (
  id                   INTEGER PRIMARY KEY AUTOINCREMENT,
  study                INTEGER NOT NULL REFERENCES study (id),
  sop_instance_uid     TEXT NOT NULL,
  destination          INTEGER NOT NULL REFERENCES destination (id) ON DELETE CASCADE,
  transfer_syntax_uid  TEXT NOT NULL,
  body                 BLOB NOT NULL,
  made_ms              INTEGER NOT NULL,
  UNIQUE (study, destination)
) STRICT;

-- Studies a destination is to be told of, from its first instance until it was.
CREATE TABLE notification_due (
  study        INTEGER NOT NULL REFERENCES study (id),
  destination  INTEGER NOT NULL REFERENCES destination (id) ON DELETE CASCADE,
  PRIMARY KEY (study, destination)
) STRICT, WITHOUT ROWID;
-- Up to which study a destination has been considered.
ALTER TABLE destination ADD COLUMN notify_mark INTEGER NOT NULL DEFAULT 0;

ALTER TABLE destination ADD COLUMN mpps INTEGER NOT NULL DEFAULT 0;    -- 1: it is told of steps
ALTER TABLE destination ADD COLUMN notify INTEGER NOT NULL DEFAULT 0;  -- 1: of studies that are there

-- Instances and messages wait in indexes of their own: neither is looked through for the other.
DROP INDEX delivery_due;
CREATE INDEX delivery_due ON delivery (destination, priority DESC, id, next_ms, breaks)
  WHERE state = 'queued' AND kind = 'instance';
DROP INDEX delivery_next;
CREATE INDEX delivery_next ON delivery (destination, next_ms)
  WHERE state = 'queued' AND kind = 'instance';
CREATE INDEX delivery_message ON delivery (destination, priority DESC, id)
  WHERE state = 'queued' AND kind != 'instance';
CREATE INDEX delivery_ordered ON delivery (ordering_key, destination, id)
  WHERE ordering_key != '' AND state IN ('queued', 'sending', 'held', 'failed');

-- Commitment requests that name what is not here (0112): one sign of what is missing.
CREATE INDEX pledge_item_absent ON pledge_item (pledge) WHERE reason = 274;
