-- Proof of arrival: storage commitment that was asked for, what the reports said, and how often
-- proof of each delivery was asked in vain.

-- One storage commitment transaction.
CREATE TABLE commitment (
  id               INTEGER PRIMARY KEY AUTOINCREMENT,
  destination      INTEGER NOT NULL REFERENCES destination (id) ON DELETE CASCADE,
  transaction_uid  TEXT NOT NULL UNIQUE,
  state            TEXT NOT NULL,         -- CommitmentState
  asked_ms         INTEGER NOT NULL,
  patience_ms      INTEGER NOT NULL       -- how long after that its report is awaited
) STRICT;
CREATE INDEX commitment_open ON commitment (destination) WHERE state IN ('asked', 'reported');

-- What it is about, until all of it is committed; a report may come late.
CREATE TABLE commitment_item (
  commitment        INTEGER NOT NULL REFERENCES commitment (id) ON DELETE CASCADE,
  sop_instance_uid  TEXT NOT NULL,
  delivery          INTEGER NOT NULL REFERENCES delivery (id) ON DELETE CASCADE,
  reason            INTEGER,              -- NULL until reported; 0 committed, else PS3.3 C.14-1
  PRIMARY KEY (commitment, sop_instance_uid)
) STRICT, WITHOUT ROWID;
CREATE INDEX commitment_item_delivery ON commitment_item (delivery);

ALTER TABLE delivery ADD COLUMN asked  INTEGER NOT NULL DEFAULT 0;  -- commitments without an answer
ALTER TABLE delivery ADD COLUMN looked INTEGER NOT NULL DEFAULT 0;  -- queries that did not find it
ALTER TABLE delivery ADD COLUMN missed INTEGER NOT NULL DEFAULT 0;  -- times it was sent and not there
CREATE INDEX delivery_unproved ON delivery (destination, next_ms)
  WHERE state = 'sent' AND proof = 'response';

ALTER TABLE destination ADD COLUMN callback_ms INTEGER NOT NULL DEFAULT 0;  -- when it was learnt
