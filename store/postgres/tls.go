package postgres

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// complete returns an error if a file of certificates, if one is named, is cut off, by a
// full disk or because it is being written. What crypto makes of it is a shorter list.
func complete(file string) error {
	if file == "" || file == "system" {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	begun := bytes.Count(text, []byte("-----BEGIN CERTIFICATE-----"))
	if begun != bytes.Count(text, []byte("-----END CERTIFICATE-----")) {
		return fmt.Errorf("%s is cut off in the midst of a certificate", file)
	}
	return nil
}

// A tlsFiles keeps what the TLS files that the URL names held when all of them were right.
type tlsFiles struct {
	opts    Options
	timeout time.Duration
	log     *slog.Logger

	mu      sync.Mutex
	last    *pgx.ConnConfig
	trouble string // why last is not what the files hold; empty if it is
}

// apply makes a connection that is about to be made use what the files hold or, if that
// can't be used, what they held before. The log is told when it begins to be so, why, and
// when it is over.
func (f *tlsFiles) apply(c *pgx.ConnConfig) {
	f.mu.Lock()
	defer f.mu.Unlock()
	// All of it is parsed again, for pgx's verification holds on to the authorities that it
	// began with.
	pool, _, err := f.opts.config(f.timeout)
	switch {
	case err == nil:
		if f.trouble != "" {
			f.log.Info("the TLS files of PostgreSQL can be used again")
		}
		f.last, f.trouble = pool.ConnConfig, ""
	case err.Error() != f.trouble:
		f.log.Warn("the TLS files of PostgreSQL can't be used; going on with what they held before", "error", err)
		f.trouble = err.Error()
	}
	c.TLSConfig, c.Fallbacks = f.last.TLSConfig, f.last.Fallbacks
}
