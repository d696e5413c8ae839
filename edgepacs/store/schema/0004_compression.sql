-- Compression at rest. Nothing here is written when an instance is received: what is new is found
-- by its number, which only grows.

-- An instance that may be compressed, and what came of it.
CREATE TABLE compression (
  instance             INTEGER PRIMARY KEY REFERENCES instance (id),
  state                TEXT NOT NULL,     -- CompressionState
  transfer_syntax_uid  TEXT NOT NULL DEFAULT '',  -- of the data set at rest, once compressed
  reason               TEXT NOT NULL DEFAULT '',  -- why it stays as received, in plain words
  attempts             INTEGER NOT NULL DEFAULT 0,  -- begun, each recorded before the work
  priority             INTEGER NOT NULL DEFAULT 0,  -- higher first
  received_length      INTEGER NOT NULL,  -- bytes of the data set as received
  byte_length          INTEGER NOT NULL,  -- bytes of the data set at rest
  encode_ms            INTEGER NOT NULL DEFAULT 0,  -- processor time
  verify_ms            INTEGER NOT NULL DEFAULT 0,
  changed_ms           INTEGER NOT NULL
) STRICT;
CREATE INDEX compression_waiting ON compression (priority DESC, instance) WHERE state = 'waiting';
CREATE INDEX compression_begun ON compression (state) WHERE state = 'compressing';

-- What the first instance of a series was found smallest in: the others follow.
CREATE TABLE compression_choice (
  series               INTEGER PRIMARY KEY REFERENCES series (id),
  transfer_syntax_uid  TEXT NOT NULL
) STRICT;

-- Up to which instance has been considered. What an earlier version stored is compressed on
-- request.
CREATE TABLE compression_mark (
  only       INTEGER PRIMARY KEY CHECK (only = 1),
  considered INTEGER NOT NULL
) STRICT;
INSERT INTO compression_mark SELECT 1, COALESCE(MAX(id), 0) FROM instance;
