package scale

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

const (
	// pageEntries is how many sessions of all are looked at, as a page of a list of them.
	pageEntries = 64
	// smallest is how many sessions a size has at least, for a full page.
	smallest = 2 * pageEntries / perUser
	// reapBatch is how many entries a node claims at a time.
	reapBatch = 100
)

// A measured is something that a store does, one call after the other.
type measured struct {
	name string
	// prepare runs before each round's calls, and tidy after them; their time doesn't count.
	prepare, tidy func(ctx context.Context, s *server, calls int) error
	call          func(ctx context.Context, s *server, i int) error
	per           int // what one call does as many of; 0 means 1
}

// operations come in an order in which each finds what it needs: sessions that are begun
// are ended again, so that every round begins with the same number.
func operations() []measured {
	return []measured{
		{name: "create a record", prepare: newSessions, call: func(ctx context.Context, s *server, i int) error {
			return s.Create(ctx, s.batch[i].entry.Record, s.batch[i].value, life)
		}},
		{name: "admit", call: func(ctx context.Context, s *server, i int) error {
			_, err := s.Admit(ctx, s.batch[i].entry, life, limits, "")
			return err
		}},
		{name: "end", call: func(ctx context.Context, s *server, i int) error {
			_, err := s.End(ctx, s.batch[i].entry, "signed_out")
			return err
		}},
		{name: "delete the record", call: func(ctx context.Context, s *server, i int) error {
			return s.Delete(ctx, s.batch[i].entry.Record)
		}},
		{name: "remove", call: func(ctx context.Context, s *server, i int) error {
			return s.Remove(ctx, s.batch[i].entry)
		}},
		{name: "admit, with a total limit", prepare: newSessions, tidy: removeSessions, call: func(ctx context.Context, s *server, i int) error {
			total := limits
			total.Total = 1_000_000_000
			_, err := s.Admit(ctx, s.batch[i].entry, life, total, "")
			return err
		}},
		{name: "get a record", call: func(ctx context.Context, s *server, _ int) error {
			_, err := s.Get(ctx, s.random().entry.Record)
			return err
		}},
		{name: "touch", call: func(ctx context.Context, s *server, _ int) error {
			return s.Touch(ctx, s.random().entry.Record, life)
		}},
		{name: "renew", call: func(ctx context.Context, s *server, _ int) error {
			return s.Renew(ctx, s.random().entry, life)
		}},
		{name: "find by user", call: func(ctx context.Context, s *server, _ int) error {
			return s.find(ctx, store.Query{Tenant: tenant, User: s.random().entry.User}, perUser)
		}},
		{name: "find by sid", call: func(ctx context.Context, s *server, _ int) error {
			return s.find(ctx, store.Query{Tenant: tenant, SID: s.random().entry.SID}, 1)
		}},
		{name: "find by id", call: func(ctx context.Context, s *server, _ int) error {
			return s.find(ctx, store.Query{Tenant: tenant, ID: s.random().entry.ID}, 1)
		}},
		{name: fmt.Sprintf("find %d of all", pageEntries), call: func(ctx context.Context, s *server, _ int) error {
			return s.find(ctx, store.Query{Tenant: tenant}, pageEntries)
		}},
		{name: "reap, nothing due", call: func(ctx context.Context, s *server, _ int) error {
			claimed, err := s.Reap(ctx, reapBatch)
			if err == nil && len(claimed) > 0 {
				err = fmt.Errorf("%d entries are due", len(claimed))
			}
			return err
		}},
		{name: "reap, per session", per: reapBatch, prepare: expireSessions, tidy: removeSessions, call: func(ctx context.Context, s *server, i int) error {
			if i >= s.reaps {
				return nil
			}
			claimed, err := s.Reap(ctx, reapBatch)
			if err == nil && len(claimed) != reapBatch {
				err = fmt.Errorf("%d entries claimed, want %d", len(claimed), reapBatch)
			}
			return err
		}},
		{name: "append an event", call: func(ctx context.Context, s *server, _ int) error {
			return s.Append(ctx, s.noise[:eventBytes])
		}},
	}
}

// eventBytes is the size of an encoded event.
const eventBytes = 300

func newSessions(_ context.Context, s *server, calls int) error {
	s.batch = nil
	for range calls {
		s.batch = append(s.batch, s.next())
	}
	return nil
}

func removeSessions(ctx context.Context, s *server, _ int) error {
	return parallel(len(s.batch), s.workers, func(i int) error { return s.Remove(ctx, s.batch[i].entry) })
}

// expireSessions lists as many sessions as all calls of Reap claim, and waits until they
// have expired.
func expireSessions(ctx context.Context, s *server, calls int) error {
	const soon = time.Second
	s.reaps = max(calls/20, 1)
	if err := newSessions(ctx, s, s.reaps*reapBatch); err != nil {
		return err
	}
	err := parallel(len(s.batch), s.workers, func(i int) error {
		_, err := s.Admit(ctx, s.batch[i].entry, soon, limits, "")
		return err
	})
	time.Sleep(soon + 10*time.Millisecond)
	return err
}

// find looks at the first sessions that match.
func (s *server) find(ctx context.Context, q store.Query, want int) error {
	found := 0
	for _, err := range s.Find(ctx, q) {
		if err != nil {
			return err
		}
		if found++; found == pageEntries {
			break
		}
	}
	if found < want {
		return fmt.Errorf("found %d sessions, want %d", found, want)
	}
	return nil
}

// sample calls an operation for one round.
func (s *server) sample(ctx context.Context, op measured, calls int, taken *samples) error {
	if op.prepare != nil {
		if err := op.prepare(ctx, s, calls); err != nil {
			return err
		}
	}
	if op.per == reapBatch {
		calls = s.reaps
	}
	unit := float64(max(op.per, 1)) * 1e3 // nanoseconds to microseconds, of one
	wall := make([]float64, calls)
	before, err := s.cpu(ctx)
	if err != nil {
		return err
	}
	for i := range calls {
		began := time.Now()
		if err := op.call(ctx, s, i); err != nil {
			return err
		}
		wall[i] = float64(time.Since(began).Nanoseconds()) / unit
	}
	after, err := s.cpu(ctx)
	if err != nil {
		return err
	}
	var cpu time.Duration
	for pid, total := range after {
		cpu += total - before[pid]
	}
	taken.wall = slices.Concat(taken.wall, wall)
	taken.cpu = append(taken.cpu, float64(cpu.Nanoseconds())/unit/float64(calls))
	if op.tidy != nil {
		return op.tidy(ctx, s, calls)
	}
	return nil
}
