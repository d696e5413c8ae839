-- Sending in parallel lanes: what the queue of 100,000 is asked for, without reading all of it.

ALTER TABLE delivery ADD COLUMN breaks INTEGER NOT NULL DEFAULT 0;  -- lines that broke inside it

DROP INDEX delivery_due;
CREATE INDEX delivery_due ON delivery (destination, priority DESC, id, next_ms, breaks) WHERE state = 'queued';
CREATE INDEX delivery_next ON delivery (destination, next_ms) WHERE state = 'queued';
CREATE INDEX attempt_open ON attempt (delivery) WHERE ended_ms IS NULL;
