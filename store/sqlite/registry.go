package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// columns are those of an entry, in the order of entryOf.
const columns = `tenant, id, user, app, sid, ending, started, seen, expires, record, data`

const (
	// findPage is how many entries Find reads at a time.
	findPage = 256
	// seatBatch bounds how many expired seats one Admit gives back.
	seatBatch = 128
)

// entryOf reads a row of columns.
func entryOf(row []driver.Value) (store.Entry, error) {
	var e store.Entry
	var started, seen, expires int64
	var record []byte
	for i, to := range []any{
		&e.Tenant, &e.ID, &e.User, &e.App, &e.SID, &e.Ending, &started, &seen, &expires, &record, &e.Data,
	} {
		ok := false
		switch to := to.(type) {
		case *string:
			*to, ok = row[i].(string)
		case *int64:
			*to, ok = row[i].(int64)
		case *[]byte:
			*to, ok = row[i].([]byte)
		}
		if !ok {
			return e, errors.New("the entry is of other types than this program writes")
		}
	}
	e.Record = string(record)
	e.Started, e.Seen, e.Expires = time.UnixMicro(started), time.UnixMicro(seen), time.UnixMicro(expires)
	return e, nil
}

// entries runs a statement that returns rows of columns.
func (c *conn) entries(query string, args ...driver.Value) ([]store.Entry, error) {
	var all []store.Entry
	err := c.each(func(row []driver.Value) error {
		e, err := entryOf(row)
		all = append(all, e)
		return err
	}, query, args...)
	return all, err
}

// until returns when what gets ttl now ends.
func until(now int64, ttl time.Duration) int64 { return now + max(ttl, store.MinTTL).Microseconds() }

// Admit implements store.Registry.
func (s *Store) Admit(ctx context.Context, e store.Entry, ttl time.Duration, limits store.Limits, replaces string) ([]store.Entry, error) {
	if err := store.CheckAdmit(e, replaces); err != nil {
		return nil, wrap("admit", err)
	}
	var ending []store.Entry
	err := on(ctx, s.writer, "admit", func(c *conn) error {
		now := time.Now().UnixMicro()
		if err := freeSeats(c, e.Tenant, limits.Total, now); err != nil {
			return err
		}
		return c.transaction(func() (err error) {
			if err := admit(c, e, now, ttl, limits, replaces); err != nil {
				return err
			}
			ending, err = c.entries(`SELECT `+columns+` FROM entries WHERE tenant = ? AND user = ? AND ending <> ''`,
				e.Tenant, e.User)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return ending, nil
}

// admit lists e and marks who gives way. After an error, a *LimitError among them, the
// transaction must be undone.
func admit(c *conn, e store.Entry, now int64, ttl time.Duration, limits store.Limits, replaces string) error {
	before, err := seats(c, e.Tenant)
	if err != nil {
		return err
	}
	if replaces != "" {
		if _, err := mark(c, e.Tenant, e.User, replaces, store.ReasonReplaced, now); err != nil {
			return err
		}
		// The new entry takes over its seat, if it had one. Where they are the same, put
		// makes up for all of this.
		if _, err := c.exec(`UPDATE entries SET seated = 0 WHERE tenant = ? AND user = ? AND id = ?`,
			e.Tenant, e.User, replaces); err != nil {
			return err
		}
	}
	if err := put(c, e, now, ttl); err != nil {
		return err
	}
	after, err := seats(c, e.Tenant)
	if err != nil {
		return err
	}
	if limits.Total > 0 && after > before && after > int64(limits.Total) {
		return &store.LimitError{Limit: store.LimitTotal}
	}
	if limits.PerUser <= 0 && limits.PerApp <= 0 {
		return nil
	}
	counted, err := others(c, e, now)
	if err != nil {
		return err
	}
	victims, err := store.GiveWay(counted, e.App, limits)
	if err != nil {
		return err
	}
	for _, id := range victims {
		if _, err := mark(c, e.Tenant, e.User, id, store.ReasonEvicted, now); err != nil {
			return err
		}
	}
	return nil
}

// put lists e as live from now on, in place of an entry of the same ID.
func put(c *conn, e store.Entry, now int64, ttl time.Duration) error {
	_, err := c.exec(`
		INSERT INTO entries (tenant, id, user, app, sid, ending, started, seen, expires, due, seated, record, data)
		VALUES (?1, ?2, ?3, ?4, ?5, '', ?6, ?6, ?7, ?7, 1, ?8, ?9)
		ON CONFLICT (tenant, id) DO UPDATE SET user = ?3, app = ?4, sid = ?5, ending = '',
			started = ?6, seen = ?6, expires = ?7, due = ?7, seated = 1, record = ?8, data = ?9`,
		e.Tenant, e.ID, e.User, e.App, e.SID, now, until(now, ttl), []byte(e.Record), blob(e.Data))
	return err
}

// mark marks an entry as ending unless it is already, and returns how many it marked.
func mark(c *conn, tenant, user, id, reason string, now int64) (int64, error) {
	return c.exec(`
		UPDATE entries SET ending = ?, due = min(expires, ?)
		WHERE tenant = ? AND user = ? AND id = ? AND ending = ''`,
		reason, until(now, store.EndingPatience), tenant, user, id)
}

// others returns the user's live entries but e itself, as far as store.GiveWay looks at them.
func others(c *conn, e store.Entry, now int64) ([]store.Entry, error) {
	var all []store.Entry
	err := c.each(func(row []driver.Value) error {
		id, ok1 := row[0].(string)
		app, ok2 := row[1].(string)
		started, ok3 := row[2].(int64)
		seen, ok4 := row[3].(int64)
		if !ok1 || !ok2 || !ok3 || !ok4 {
			return errors.New("the entry is of other types than this program writes")
		}
		all = append(all, store.Entry{ID: id, App: app, Started: time.UnixMicro(started), Seen: time.UnixMicro(seen)})
		return nil
	}, `SELECT id, app, started, seen FROM entries WHERE tenant = ? AND user = ? AND ending = '' AND expires > ? AND id <> ?`,
		e.Tenant, e.User, now, e.ID)
	return all, err
}

// seats returns how many seats of a tenant are taken.
func seats(c *conn, tenant string) (int64, error) {
	return c.number(`SELECT coalesce((SELECT taken FROM seats WHERE tenant = ?), 0)`, tenant)
}

// freeSeats gives back seats of expired entries where a tenant has none left. Total is
// then judged by what is in the file.
func freeSeats(c *conn, tenant string, total int, now int64) error {
	if total <= 0 {
		return nil
	}
	taken, err := seats(c, tenant)
	if err != nil || taken < int64(total) {
		return err
	}
	_, err = c.exec(`
		UPDATE entries SET seated = 0 WHERE rowid IN
			(SELECT rowid FROM entries WHERE tenant = ? AND seated = 1 AND expires <= ? LIMIT ?)`,
		tenant, now, int64(seatBatch))
	return err
}

// Renew implements store.Registry.
func (s *Store) Renew(ctx context.Context, e store.Entry, ttl time.Duration) error {
	if err := store.CheckEntry(e); err != nil {
		return wrap("renew", err)
	}
	return on(ctx, s.writer, "renew", func(c *conn) error {
		now := time.Now().UnixMicro()
		n, err := c.exec(`
			UPDATE entries SET seen = ?1, expires = max(expires, ?2), due = max(expires, ?2), seated = 1
			WHERE tenant = ?3 AND user = ?4 AND id = ?5 AND ending = ''`,
			now, until(now, ttl), e.Tenant, e.User, e.ID)
		if err != nil || n > 0 {
			return err
		}
		// Nothing was written, and nobody else writes before we return.
		row, err := c.query(`SELECT 1 FROM entries WHERE tenant = ? AND user = ? AND id = ?`, e.Tenant, e.User, e.ID)
		if err != nil {
			return err
		}
		if row != nil {
			return store.ErrEnding
		}
		return put(c, e, now, ttl)
	})
}

// End implements store.Registry.
func (s *Store) End(ctx context.Context, e store.Entry, reason string) (store.Entry, error) {
	err := store.CheckNamed(e)
	if err == nil {
		err = store.CheckReason(reason)
	}
	if err != nil {
		return store.Entry{}, wrap("end", err)
	}
	var ended store.Entry
	err = on(ctx, s.writer, "end", func(c *conn) error {
		if _, err := mark(c, e.Tenant, e.User, e.ID, reason, time.Now().UnixMicro()); err != nil {
			return err
		}
		row, err := c.query(`SELECT `+columns+` FROM entries WHERE tenant = ? AND user = ? AND id = ?`,
			e.Tenant, e.User, e.ID)
		if err != nil {
			return err
		}
		if row == nil {
			return store.ErrNotFound
		}
		ended, err = entryOf(row)
		return err
	})
	return ended, err
}

// Remove implements store.Registry.
func (s *Store) Remove(ctx context.Context, e store.Entry) error {
	if err := store.CheckNamed(e); err != nil {
		return wrap("remove", err)
	}
	return on(ctx, s.writer, "remove", func(c *conn) error {
		_, err := c.exec(`DELETE FROM entries WHERE tenant = ? AND user = ? AND id = ?`, e.Tenant, e.User, e.ID)
		return err
	})
}

// Find implements store.Registry. Between pages it holds no connection, so neither a
// slow caller nor a long list keeps anybody else waiting.
func (s *Store) Find(ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		if err := store.CheckQuery(q); err != nil {
			yield(store.Entry{}, wrap("find", err))
			return
		}
		query, name := pageOf(q)
		for after := ""; ; {
			var page []store.Entry
			err := on(ctx, s.readers, "find", func(c *conn) (err error) {
				page, err = c.entries(query, q.Tenant, name, after, time.Now().UnixMicro(), int64(findPage))
				return err
			})
			if err != nil {
				yield(store.Entry{}, err)
				return
			}
			for _, e := range page {
				if !yield(e, nil) {
					return
				}
			}
			if len(page) < findPage {
				return
			}
			after = page[len(page)-1].ID
		}
	}
}

// pageOf returns the statement that reads a page of what q asks for, and the name that
// it asks for. The other arguments are the tenant, the last ID of the page before, the
// time and the length of a page.
func pageOf(q store.Query) (query, name string) {
	which := `?2 = ''`
	switch {
	case q.User != "":
		which, name = `user = ?2`, q.User
	case q.SID != "":
		which, name = `sid = ?2 AND sid <> ''`, q.SID
	case q.ID != "":
		which, name = `id = ?2`, q.ID
	}
	return fmt.Sprintf(`SELECT %s FROM entries WHERE tenant = ?1 AND %s AND id > ?3 AND expires > ?4 ORDER BY id LIMIT ?5`,
		columns, which), name
}

// Reap implements store.Registry.
func (s *Store) Reap(ctx context.Context, limit int) ([]store.Entry, error) {
	var claimed []store.Entry
	err := on(ctx, s.writer, "reap", func(c *conn) (err error) {
		now := time.Now().UnixMicro()
		claimed, err = c.entries(`
			UPDATE entries SET ending = iif(ending = '', ?1, ending), due = ?2
			WHERE rowid IN (SELECT rowid FROM entries WHERE due <= ?3 ORDER BY due LIMIT ?4)
			RETURNING `+columns, store.ReasonExpired, until(now, store.ClaimLife), now, int64(max(limit, 0)))
		return err
	})
	if err != nil {
		return nil, err
	}
	return claimed, nil
}
