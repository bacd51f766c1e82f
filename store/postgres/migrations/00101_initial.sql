-- +goose Up

-- What slides moves in small rows of its own: a touch writes one of some hundred bytes and
-- no index (a heap-only update, for which the page keeps room), never the value.
--
-- due is not after expires, and the only one of both with an index. It is when the reaper
-- looks: it finds the record expired and removes it, or sets due to the new end. So what
-- is touched every half minute costs the index one entry per lifetime.
CREATE TABLE records (
	key      bytea       PRIMARY KEY,
	revision bigint      NOT NULL,
	expires  timestamptz NOT NULL,
	due      timestamptz NOT NULL
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX records_due ON records (due);

-- A body goes with its record, whoever deletes that.
CREATE TABLE bodies (
	key   bytea PRIMARY KEY REFERENCES records ON DELETE CASCADE,
	value bytea NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE bodies ALTER COLUMN value SET STORAGE EXTERNAL; -- sealed bytes don't compress

-- The registry. What Renew writes stands first: the rest of the row is then the same bytes
-- in the same place, which the WAL leaves out.
--
-- due is when Reap looks: at the end of a live entry or before it, and for an ending one
-- when whoever marked or claimed it has had its time.
CREATE TABLE entries (
	expires timestamptz NOT NULL,
	seen    timestamptz NOT NULL,
	started timestamptz NOT NULL,
	due     timestamptz NOT NULL,
	seat    smallint, -- the shard of seats that counts it; null: none does
	tenant  text COLLATE "C" NOT NULL,
	user_id text COLLATE "C" NOT NULL,
	id      text COLLATE "C" NOT NULL,
	app     text COLLATE "C" NOT NULL,
	sid     text COLLATE "C" NOT NULL,
	ending  text COLLATE "C" NOT NULL,
	record  bytea NOT NULL,
	data    bytea NOT NULL,
	PRIMARY KEY (tenant, user_id, id)
) WITH (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX entries_id ON entries (tenant, id, user_id);
CREATE INDEX entries_sid ON entries (tenant, sid, id, user_id) WHERE sid <> '';
CREATE INDEX entries_due ON entries (due);

-- How many entries of a tenant have a seat, in several rows, so that sign-ins and sign-outs
-- of one tenant don't wait for each other's commits.
CREATE TABLE seats (
	tenant text COLLATE "C",
	shard  smallint,
	taken  bigint NOT NULL,
	PRIMARY KEY (tenant, shard)
) WITH (fillfactor = 20);

CREATE SEQUENCE fences;

CREATE TABLE leases (
	name    bytea       PRIMARY KEY,
	fence   bigint      NOT NULL,
	expires timestamptz NOT NULL
) WITH (fillfactor = 60);
CREATE INDEX leases_expires ON leases (expires);

-- What nodes told each other lately, for those who were cut off meanwhile.
CREATE TABLE events (
	at   timestamptz NOT NULL DEFAULT clock_timestamp(),
	id   bigint GENERATED ALWAYS AS IDENTITY,
	data bytea NOT NULL,
	PRIMARY KEY (at, id)
);
