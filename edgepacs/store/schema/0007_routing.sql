-- Rules with destinations in failover order, and what deliveries remember of the rule they came by.

-- AUTOINCREMENT: a delivery may name a rule that is gone, and must not take another for it.
CREATE TABLE rule_next (
  id          INTEGER PRIMARY KEY AUTOINCREMENT,
  everywhere  INTEGER NOT NULL,              -- 1: to every destination, and no rows in rule_way
  match       TEXT NOT NULL,                 -- '' matches everything
  hold        INTEGER NOT NULL,              -- 1: held until the study is verified
  priority    INTEGER NOT NULL,
  send_as     TEXT NOT NULL DEFAULT '',      -- '': as the destination's settings say
  patience_s  INTEGER NOT NULL DEFAULT 900,  -- a line is down so long before the next is used
  created_ms  INTEGER NOT NULL
) STRICT;

CREATE TABLE rule_way (
  rule         INTEGER NOT NULL REFERENCES rule_next (id) ON DELETE CASCADE,
  place        INTEGER NOT NULL,             -- the lowest is where it sends, the others follow
  destination  INTEGER NOT NULL REFERENCES destination (id) ON DELETE CASCADE,
  PRIMARY KEY (rule, place)
) STRICT, WITHOUT ROWID;

INSERT INTO rule_next (id, everywhere, match, hold, priority, created_ms)
  SELECT id, destination IS NULL, match, hold, priority, created_ms FROM rule;
INSERT INTO rule_way SELECT id, 0, destination FROM rule WHERE destination IS NOT NULL;
DROP TABLE rule;
ALTER TABLE rule_next RENAME TO rule;

-- A rule goes with the last of its destinations.
CREATE TRIGGER rule_without_way AFTER DELETE ON rule_way
WHEN NOT EXISTS (SELECT 1 FROM rule_way WHERE rule = OLD.rule)
BEGIN DELETE FROM rule WHERE id = OLD.rule; END;

-- Another value whenever the rules, or what they are compiled with, change: who has compiled them
-- keeps them by it. At random, so that no two states of two indexes ever share one.
CREATE TABLE routing (
  only   INTEGER PRIMARY KEY CHECK (only = 1),
  stamp  INTEGER NOT NULL
) STRICT;
INSERT INTO routing VALUES (1, random());
CREATE TRIGGER routing_rule_added AFTER INSERT ON rule
BEGIN UPDATE routing SET stamp = random(); END;
CREATE TRIGGER routing_rule_changed AFTER UPDATE ON rule
BEGIN UPDATE routing SET stamp = random(); END;
CREATE TRIGGER routing_rule_removed AFTER DELETE ON rule
BEGIN UPDATE routing SET stamp = random(); END;
CREATE TRIGGER routing_way_added AFTER INSERT ON rule_way
BEGIN UPDATE routing SET stamp = random(); END;
CREATE TRIGGER routing_way_removed AFTER DELETE ON rule_way
BEGIN UPDATE routing SET stamp = random(); END;
CREATE TRIGGER routing_destination_added AFTER INSERT ON destination
BEGIN UPDATE routing SET stamp = random(); END;
CREATE TRIGGER routing_destination_changed AFTER UPDATE OF ae_title ON destination
BEGIN UPDATE routing SET stamp = random(); END;
CREATE TRIGGER routing_destination_removed AFTER DELETE ON destination
BEGIN UPDATE routing SET stamp = random(); END;

ALTER TABLE delivery ADD COLUMN send_as TEXT NOT NULL DEFAULT '';     -- as in rule
ALTER TABLE delivery ADD COLUMN failover INTEGER;                     -- rule in whose order it moves
ALTER TABLE delivery ADD COLUMN sent_ms INTEGER NOT NULL DEFAULT 0;   -- answered success; 0: never
ALTER TABLE delivery ADD COLUMN proved_ms INTEGER NOT NULL DEFAULT 0; -- committed or found

-- What waits is summed by destination and study without reading a row of it, and what is under way
-- is found by the same index; a delivery stands in no more of them than before.
DROP INDEX delivery_state;
DROP INDEX delivery_open;
CREATE INDEX delivery_state ON delivery (state, destination, study);
CREATE INDEX delivery_failover ON delivery (destination, failover)
  WHERE state = 'queued' AND failover IS NOT NULL;

ALTER TABLE study ADD COLUMN worklist TEXT NOT NULL DEFAULT 'none';   -- WorklistMatch
