package postgres

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// What is notified of, as it stands in the names of channels.
const (
	changes = "changes"
	journal = "journal"
)

// channel names a channel. A database has one set of them, so the schema stands in it.
func (s *Store) channel(of string) string { return "coatcheck_" + s.schema + "_" + of }

// encode makes a payload of any bytes. A payload is text of up to 7999 bytes; keys and
// events are small enough.
func encode(data string) string { return base64.RawStdEncoding.EncodeToString([]byte(data)) }

func decode(payload string) ([]byte, error) { return base64.RawStdEncoding.DecodeString(payload) }

// An ear listens on a channel with a connection of its own. PostgreSQL delivers
// notifications in the order of their commits. So once one arrives that the ear has sent
// itself, every other that was committed before has arrived, too.
type ear struct {
	channel string
	// beat is how often it makes sure that it hears.
	beat time.Duration
	// begin is called each time it has begun to listen.
	begin func(ctx context.Context, conn *pgx.Conn) error
	// told is called with each payload.
	told func(payload []byte)
	// current is called with a time when every payload that was committed before it has
	// been told since begin.
	current func(asOf time.Time)
}

// Bounds of the pause before a connection is tried again.
const (
	shortestPause = 20 * time.Millisecond
	longestPause  = 500 * time.Millisecond
)

// listen listens until ctx ends, and returns its error. The log is told when the first of
// all ears no longer hears, and when the last one hears again.
func (s *Store) listen(ctx context.Context, e ear) error {
	pause, deaf := shortestPause, false
	defer func() {
		if deaf {
			s.deaf.Add(-1)
		}
	}()
	heard := func() {
		pause = shortestPause
		if deaf && s.deaf.Add(-1) == 0 {
			s.log.Info("the feed of changes is back")
		}
		deaf = false
	}
	for ctx.Err() == nil {
		err := s.listenOnce(ctx, e, heard)
		if ctx.Err() != nil {
			break
		}
		if !deaf && s.deaf.Add(1) == 1 {
			s.log.Warn("the feed of changes is interrupted", "error", s.fitness(err))
		}
		deaf = true
		select {
		case <-ctx.Done():
		case <-time.After(pause + rand.N(pause)):
		}
		pause = min(2*pause, longestPause)
	}
	return ctx.Err()
}

// listenOnce listens until it no longer can. It calls heard each time it is sure to hear.
func (s *Store) listenOnce(ctx context.Context, e ear, heard func()) error {
	conn, err := s.connect(ctx, s.config.Copy())
	if err != nil {
		return err
	}
	defer s.hangUp(conn)
	own := fmt.Sprintf("coatcheck_beat_%016x", rand.Uint64())
	for _, channel := range []string{e.channel, own} {
		if err := s.soon(ctx, func(ctx context.Context) error {
			_, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{channel}.Sanitize())
			return err
		}); err != nil {
			return err
		}
	}
	if err := e.begin(ctx, conn); err != nil {
		return err
	}
	// A pooler of transactions lends the ear a connection to the server for each of its own
	// statements, with the answer to a beat sent there, and for no other node's. So the first
	// beat comes from elsewhere.
	notify := s.pool.Exec
	for beat := 0; ; beat++ {
		asOf := time.Now()
		if err := s.soon(ctx, func(ctx context.Context) error {
			_, err := notify(ctx, `SELECT pg_notify($1, $2)`, own, strconv.Itoa(beat))
			return err
		}); err != nil {
			return err
		}
		for answered := false; !answered; {
			n, err := next(ctx, conn, asOf.Add(s.timeout))
			if err != nil {
				return err
			}
			if n == nil && beat == 0 {
				return errors.New("nothing is heard on a connection that listens; a pooler in between must pool sessions, not transactions")
			}
			if n == nil {
				return errors.New("no answer in time")
			}
			if answered = n.Channel == own && n.Payload == strconv.Itoa(beat); !answered {
				e.hear(n)
			}
		}
		heard()
		e.current(asOf)
		notify = conn.Exec
		for {
			n, err := next(ctx, conn, asOf.Add(e.beat))
			if err != nil {
				return err
			}
			if n == nil {
				break
			}
			e.hear(n)
		}
	}
}

// hear tells a notification. Others may notify of what they like; what is not ours tells
// nothing.
func (e *ear) hear(n *pgconn.Notification) {
	if n.Channel != e.channel {
		return
	}
	if payload, err := decode(n.Payload); err == nil {
		e.told(payload)
	}
}

// next returns the next notification, or nil if none came in time.
func next(ctx context.Context, conn *pgx.Conn, until time.Time) (*pgconn.Notification, error) {
	waiting, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	n, err := conn.WaitForNotification(waiting)
	switch {
	case n != nil:
		return n, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case waiting.Err() != nil && !conn.IsClosed():
		return nil, nil
	default:
		return nil, err
	}
}

// soon calls do with the time of one call.
func (s *Store) soon(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return do(ctx)
}

// hangUp closes a connection that is not of the pool.
func (s *Store) hangUp(conn *pgx.Conn) {
	_ = s.soon(context.Background(), conn.Close)
}
