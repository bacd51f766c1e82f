package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"

	sqlite "modernc.org/sqlite"
)

// A conn is one connection to the file with its statements prepared for good. It
// speaks to the driver itself: with a fixed handful of statements database/sql's
// pool, argument conversion and scanning would be half the cost of a Get. It serves
// one goroutine at a time.
type conn struct {
	driver.Conn
	stmts map[string]driver.Stmt
	args  []driver.NamedValue // reused by every call
	row   []driver.Value      // likewise
}

// dial opens file. The pragmas hold for this connection, as in "busy_timeout(1000)".
func dial(file string, pragmas ...string) (*conn, error) {
	dsn := url.URL{Scheme: "file", Path: file, RawQuery: url.Values{"_pragma": pragmas}.Encode()}
	// A Driver of our own, so that nothing another package registers applies here.
	c, err := new(sqlite.Driver).Open(dsn.String())
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, stmts: make(map[string]driver.Stmt)}, nil
}

// stmt returns query, prepared at its first use.
func (c *conn) stmt(query string) (driver.Stmt, error) {
	if s, ok := c.stmts[query]; ok {
		return s, nil
	}
	s, err := c.Prepare(query)
	if err != nil {
		return nil, err
	}
	c.stmts[query] = s
	return s, nil
}

func (c *conn) bind(args []driver.Value) []driver.NamedValue {
	c.args = c.args[:0]
	for i, a := range args {
		c.args = append(c.args, driver.NamedValue{Ordinal: i + 1, Value: a})
	}
	return c.args
}

// A context that can end costs the driver a goroutine per call, to interrupt a
// statement that runs long. Ours read or write a row or a page of them; waiting for a
// lock is bounded by busy_timeout, and the callers of query, each and exec have looked
// at their context before.
var uninterrupted = context.Background()

// query runs a statement that returns at most one row. The row belongs to the
// caller until the next call; nil means that there is none.
func (c *conn) query(query string, args ...driver.Value) (_ []driver.Value, err error) {
	s, err := c.stmt(query)
	if err != nil {
		return nil, err
	}
	rows, err := s.(driver.StmtQueryContext).QueryContext(uninterrupted, c.bind(args))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	if n := len(rows.Columns()); len(c.row) != n {
		c.row = make([]driver.Value, n)
	}
	switch err := rows.Next(c.row); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return c.row, nil
}

// each runs a statement and hands over each row it returns. The row belongs to do until
// that returns; do must not use the connection.
func (c *conn) each(do func([]driver.Value) error, query string, args ...driver.Value) (err error) {
	s, err := c.stmt(query)
	if err != nil {
		return err
	}
	rows, err := s.(driver.StmtQueryContext).QueryContext(uninterrupted, c.bind(args))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	row := make([]driver.Value, len(rows.Columns()))
	for {
		switch err := rows.Next(row); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := do(row); err != nil {
			return err
		}
	}
}

// transaction runs do, whose statements all take effect, or none where it returns an
// error. The write lock is taken at once.
func (c *conn) transaction(do func() error) error {
	if _, err := c.exec("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	err := do()
	if err == nil {
		_, err = c.exec("COMMIT")
	}
	if err != nil {
		// It fails where SQLite has rolled back by itself, after a full disk for one.
		_, _ = c.exec("ROLLBACK")
	}
	return err
}

// exec runs a statement and returns how many rows it changed.
func (c *conn) exec(query string, args ...driver.Value) (int64, error) {
	s, err := c.stmt(query)
	if err != nil {
		return 0, err
	}
	r, err := s.(driver.StmtExecContext).ExecContext(uninterrupted, c.bind(args))
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// number runs a query whose answer is one integer.
func (c *conn) number(query string, args ...driver.Value) (int64, error) {
	row, err := c.query(query, args...)
	if err != nil {
		return 0, err
	}
	if len(row) != 1 {
		return 0, fmt.Errorf("%s: no answer", query)
	}
	n, ok := row[0].(int64)
	if !ok {
		return 0, fmt.Errorf("%s: answer is %T, not an integer", query, row[0])
	}
	return n, nil
}

// Close closes the statements and the connection.
func (c *conn) Close() error {
	var err error
	for _, s := range c.stmts {
		err = errors.Join(err, s.Close())
	}
	return errors.Join(err, c.Conn.Close())
}
