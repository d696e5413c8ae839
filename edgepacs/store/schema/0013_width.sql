-- How many associations at once carried what was sent last: where the next sending begins.

ALTER TABLE line_measure ADD COLUMN lanes INTEGER NOT NULL DEFAULT 0;  -- 0: not known
