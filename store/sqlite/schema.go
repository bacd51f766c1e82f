package sqlite

import (
	"errors"
	"fmt"
)

// applicationID is the file's PRAGMA application_id, "coat". Another program's database
// is never written to.
const applicationID = 0x636f6174

// steps lead from each schema version to the next; PRAGMA user_version counts those that
// a file has behind it. One that was released is never changed.
var steps = []string{
	`
CREATE TABLE records (
	key      BLOB PRIMARY KEY,
	revision INTEGER NOT NULL,
	expires  INTEGER NOT NULL, -- Unix time in milliseconds
	value    BLOB NOT NULL
);
CREATE INDEX records_expires ON records (expires);`,

	// The times of entries and leases are Unix times in microseconds. A tenant's entries
	// that hold a seat are counted by triggers, so no statement can forget to.
	`
CREATE TABLE entries (
	tenant  TEXT NOT NULL,
	id      TEXT NOT NULL,
	user    TEXT NOT NULL,
	app     TEXT NOT NULL,
	sid     TEXT NOT NULL,
	ending  TEXT NOT NULL,
	started INTEGER NOT NULL,
	seen    INTEGER NOT NULL,
	expires INTEGER NOT NULL,
	due     INTEGER NOT NULL, -- when Reap may claim it
	seated  INTEGER NOT NULL, -- 1 while it holds a seat, 0 from then on
	record  BLOB NOT NULL,
	data    BLOB NOT NULL
);
CREATE UNIQUE INDEX entries_id ON entries (tenant, id);
CREATE INDEX entries_user ON entries (tenant, user, id);
CREATE INDEX entries_sid ON entries (tenant, sid, id) WHERE sid <> '';
CREATE INDEX entries_ending ON entries (tenant, user) WHERE ending <> '';
CREATE INDEX entries_due ON entries (due);
CREATE INDEX entries_seated ON entries (tenant, expires) WHERE seated = 1;

CREATE TABLE seats (
	tenant TEXT PRIMARY KEY,
	taken  INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TRIGGER seats_empty AFTER UPDATE OF taken ON seats WHEN new.taken = 0 BEGIN
	DELETE FROM seats WHERE tenant = new.tenant;
END;
CREATE TRIGGER seats_inserted AFTER INSERT ON entries WHEN new.seated = 1 BEGIN
	INSERT INTO seats (tenant, taken) VALUES (new.tenant, 1) ON CONFLICT (tenant) DO UPDATE SET taken = taken + 1;
END;
CREATE TRIGGER seats_taken AFTER UPDATE OF seated ON entries WHEN new.seated > old.seated BEGIN
	INSERT INTO seats (tenant, taken) VALUES (new.tenant, 1) ON CONFLICT (tenant) DO UPDATE SET taken = taken + 1;
END;
CREATE TRIGGER seats_left AFTER UPDATE OF seated ON entries WHEN new.seated < old.seated BEGIN
	UPDATE seats SET taken = taken - 1 WHERE tenant = old.tenant;
END;
CREATE TRIGGER seats_deleted AFTER DELETE ON entries WHEN old.seated = 1 BEGIN
	UPDATE seats SET taken = taken - 1 WHERE tenant = old.tenant;
END;

CREATE TABLE leases (
	name    BLOB PRIMARY KEY,
	fence   INTEGER NOT NULL,
	expires INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX leases_expires ON leases (expires);`,
}

// migrate brings a new file, or one of an earlier version, to the schema of this
// program, in one transaction. It refuses one that is not ours and one from the future.
func migrate(c *conn) error {
	application, err := c.number("PRAGMA application_id")
	if err != nil {
		return explain(err)
	}
	tables, err := c.number("SELECT count(*) FROM sqlite_schema")
	if err != nil {
		return explain(err)
	}
	version, err := c.number("PRAGMA user_version")
	if err != nil {
		return err
	}
	switch {
	case application == 0 && tables == 0:
		version = 0
	case application != applicationID:
		return errors.New("the file is the SQLite database of another program")
	case version > int64(len(steps)):
		return fmt.Errorf("the file has schema version %d and this coatcheck knows %d: a newer one wrote it", version, len(steps))
	case version < 1:
		return fmt.Errorf("the file has schema version %d: it is damaged", version)
	case version == int64(len(steps)):
		return nil
	}
	return c.transaction(func() error {
		for _, step := range steps[version:] {
			if _, err := c.exec(step); err != nil {
				return err
			}
		}
		_, err := c.exec(fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d", applicationID, len(steps)))
		return err
	})
}
