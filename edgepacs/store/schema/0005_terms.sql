-- What each destination takes, as it has answered, and whether what it gets may lose something.

CREATE TABLE acceptance (
  destination          INTEGER NOT NULL REFERENCES destination (id) ON DELETE CASCADE,
  sop_class_uid        TEXT NOT NULL,
  transfer_syntax_uid  TEXT NOT NULL,
  accepted             INTEGER NOT NULL,   -- 0: proposed and refused
  learnt_ms            INTEGER NOT NULL,
  PRIMARY KEY (destination, sop_class_uid, transfer_syntax_uid)
) STRICT, WITHOUT ROWID;

ALTER TABLE destination ADD COLUMN lossy INTEGER NOT NULL DEFAULT 0;  -- quality 1 to 100; 0: never
