-- What one calling AE title may take: associations at once, the size of an object, its time.

ALTER TABLE ae ADD COLUMN max_associations   INTEGER NOT NULL DEFAULT 16;
ALTER TABLE ae ADD COLUMN max_object_mib     INTEGER NOT NULL DEFAULT 0;     -- 0: the node's
ALTER TABLE ae ADD COLUMN max_object_seconds INTEGER NOT NULL DEFAULT 3600;
