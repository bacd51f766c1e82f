CREATE TABLE records (
	key      BLOB PRIMARY KEY,
	revision INTEGER NOT NULL,
	expires  INTEGER NOT NULL, -- Unix time in milliseconds
	value    BLOB NOT NULL
);
CREATE INDEX records_expires ON records (expires);
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
CREATE INDEX leases_expires ON leases (expires);
PRAGMA application_id = 1668243828;
PRAGMA user_version = 2;
PRAGMA journal_mode = WAL;
INSERT INTO records (key, revision, expires, value) VALUES (x'5f5f486f73742d636f6174636865636b2d3030303130323033303430353036303730383039306130623063306430653066', 3262383671491905980, 4633594770339, x'01206120676f6c64656e2076616c75652000ff');
INSERT INTO entries (tenant, id, user, app, sid, ending, started, seen, expires, due, seated, record, data) VALUES ('acme', 'a', 'alice', 'shop', 'sid-of-a', '', 1795354770339303, 1795354770339303, 4633594770339303, 4633594770339303, 1, x'7265636f7264206f662061', x'64617461206f6620002061');
INSERT INTO entries (tenant, id, user, app, sid, ending, started, seen, expires, due, seated, record, data) VALUES ('acme', 'b', 'alice', 'shop', 'sid-of-b', 'revoked', 1795354770339668, 1795354770339668, 4633594770339668, 1795354780339727, 1, x'7265636f7264206f662062', x'64617461206f6620002062');
INSERT INTO leases (name, fence, expires) VALUES (x'726566726573682d3031323334353637383961626364656630313233343536373839616263646566', 1795354770339813, 4633594770339813);
