// Package guard stands between coatcheck and a store that may be slow, stopped or gone.
// Every call has a deadline. No more than a bounded number of calls are at the backend at
// once, and a bounded number wait. When the backend does not answer, a breaker refuses
// further calls at once, tries again with a few of them, and closes by itself.
//
// Whatever it refuses is unknown: none of its errors is one of package store's.
package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// Errors of calls that never reached the backend: whatever they ask for was not done.
var (
	// ErrOpen: calls have failed for a while, so this one was not tried.
	ErrOpen = errors.New("guard: the store does not answer")
	// ErrBusy: too many calls wait for the backend, or this one waited for too long.
	ErrBusy = errors.New("guard: too many calls to the store")
)

// Options of a Backend. Zero values take the defaults.
type Options struct {
	// Timeout is how long a call may take, waiting included; default 2 s. It is the last
	// resort, so it is longer than the driver's own.
	Timeout time.Duration
	// Concurrent is how many calls are at the backend at once; default 256.
	Concurrent int
	// Logger is told when the backend stops and starts answering. Required.
	Logger *slog.Logger
}

// The defaults of Options.
const (
	defaultTimeout    = 2 * time.Second
	defaultConcurrent = 256
)

// queue is how many calls may wait while others are at the backend.
const queue = 4096

// Pings have a bound of their own, so that readiness is told when all else is full.
const (
	concurrentPings = 4
	queuedPings     = 64
)

var _ store.Backend = (*Backend)(nil)

// A Backend is a guarded store.Backend. Calls that read and calls that write have a
// breaker each: a backend that refuses writes for a while still serves who is signed in.
type Backend struct {
	next    store.Backend
	timeout time.Duration
	calls   *slots
	pings   *slots
	reads   *breaker
	writes  *breaker
}

// New returns b, guarded.
func New(b store.Backend, o Options) *Backend {
	logged := func(calls string) func(State, error) {
		return func(now State, cause error) {
			if now == Closed {
				o.Logger.Info("the store answers again", "calls", calls)
				return
			}
			o.Logger.Error("the store does not answer", "calls", calls, "error", cause)
		}
	}
	return &Backend{
		next:    b,
		timeout: positive(o.Timeout, defaultTimeout),
		calls:   newSlots(positive(o.Concurrent, defaultConcurrent), queue),
		pings:   newSlots(concurrentPings, queuedPings),
		reads:   &breaker{turned: logged("read")},
		writes:  &breaker{turned: logged("write")},
	}
}

func positive[T int | time.Duration](n, fallback T) T {
	if n > 0 {
		return n
	}
	return fallback
}

// States returns what the breakers of calls that read, and of those that write, do now.
func (b *Backend) States() (reads, writes State) { return b.reads.now(), b.writes.now() }

// do runs one call.
func do[T any](ctx context.Context, b *Backend, br *breaker, op string, call func(context.Context) (T, error)) (T, error) {
	var none T
	guarded, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	p, err := b.enter(guarded, br)
	if err != nil {
		return none, refused(ctx, op, err)
	}
	verdict := unheard // should call panic
	defer func() { p.leave(verdict, err) }()
	result, err := call(guarded)
	verdict = judge(ctx, err)
	return result, err
}

// run is do for a call that returns nothing.
func run(ctx context.Context, b *Backend, br *breaker, op string, call func(context.Context) error) error {
	_, err := do(ctx, b, br, op, func(ctx context.Context) (struct{}, error) { return struct{}{}, call(ctx) })
	return err
}

// A pass is the right to be at the backend.
type pass struct {
	slots   *slots
	breaker *breaker
	turn    turn
}

// enter waits for a slot. The breaker is asked before, so that nobody waits in vain, and
// once more after, since it may have opened meanwhile.
func (b *Backend) enter(ctx context.Context, br *breaker) (pass, error) {
	if br.refuses() {
		return pass{}, ErrOpen
	}
	if err := b.calls.take(ctx); err != nil {
		return pass{}, err
	}
	t, ok := br.allow()
	if !ok {
		b.calls.free()
		return pass{}, ErrOpen
	}
	return pass{b.calls, br, t}, nil
}

func (p pass) leave(v verdict, cause error) {
	p.breaker.report(p.turn, v, cause) // first, so that who gets the slot knows
	p.slots.free()
}

// refused names the reason why a call was not made: one that gave up waiting says ErrBusy,
// unless its caller gave up first.
func refused(caller context.Context, op string, err error) error {
	switch {
	case errors.Is(err, ErrOpen), errors.Is(err, ErrBusy):
	case caller.Err() != nil:
		err = caller.Err()
	default:
		err = ErrBusy
	}
	return fmt.Errorf("%s: %w", op, err)
}

// judge says what the end of a call says of the backend. A caller that left says nothing,
// nor does a call that was refused before it was sent. One whose own deadline passed does:
// it would have been answered.
func judge(caller context.Context, err error) verdict {
	switch {
	case err == nil, store.IsOutcome(err), errors.Is(err, store.ErrRefused):
		return answered
	case errors.Is(err, store.ErrTooLarge), errors.Is(err, store.ErrBadEntry), errors.As(err, new(partly)),
		errors.Is(caller.Err(), context.Canceled):
		return unheard
	default:
		return failed
	}
}

// Get implements store.Store.
func (b *Backend) Get(ctx context.Context, key string) (store.Record, error) {
	return do(ctx, b, b.reads, "get", func(ctx context.Context) (store.Record, error) {
		return b.next.Get(ctx, key)
	})
}

// Create implements store.Store.
func (b *Backend) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	return run(ctx, b, b.writes, "create", func(ctx context.Context) error {
		return b.next.Create(ctx, key, value, ttl)
	})
}

// Replace implements store.Store.
func (b *Backend) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	return run(ctx, b, b.writes, "replace", func(ctx context.Context) error {
		return b.next.Replace(ctx, key, revision, value, ttl)
	})
}

// Touch implements store.Store.
func (b *Backend) Touch(ctx context.Context, key string, ttl time.Duration) error {
	return run(ctx, b, b.writes, "touch", func(ctx context.Context) error {
		return b.next.Touch(ctx, key, ttl)
	})
}

// Delete implements store.Store.
func (b *Backend) Delete(ctx context.Context, key string) error {
	return run(ctx, b, b.writes, "delete", func(ctx context.Context) error {
		return b.next.Delete(ctx, key)
	})
}

// Now implements store.Clock.
func (b *Backend) Now(ctx context.Context) (time.Time, error) {
	return do(ctx, b, b.reads, "now", b.next.Now)
}

// Ping implements store.Store. It asks the backend whatever the breakers say, and an
// answer lets them try again at once. Since it reads, it counts as a read where there is
// no other: those that a near cache serves would leave the breaker half-open.
func (b *Backend) Ping(ctx context.Context) error {
	guarded, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	if err := b.pings.take(guarded); err != nil {
		return refused(ctx, "ping", err)
	}
	defer b.pings.free()
	began := b.reads.begun()
	err := b.next.Ping(guarded)
	if err == nil {
		b.reads.stand(began)
		b.writes.hint()
	}
	return err
}

// Close implements store.Store.
func (b *Backend) Close() error { return b.next.Close() }

// Admit implements store.Registry.
func (b *Backend) Admit(ctx context.Context, e store.Entry, ttl time.Duration, limits store.Limits, replaces string) ([]store.Entry, error) {
	return do(ctx, b, b.writes, "admit", func(ctx context.Context) ([]store.Entry, error) {
		return b.next.Admit(ctx, e, ttl, limits, replaces)
	})
}

// Renew implements store.Registry.
func (b *Backend) Renew(ctx context.Context, e store.Entry, ttl time.Duration) error {
	return run(ctx, b, b.writes, "renew", func(ctx context.Context) error {
		return b.next.Renew(ctx, e, ttl)
	})
}

// End implements store.Registry.
func (b *Backend) End(ctx context.Context, e store.Entry, reason string) (store.Entry, error) {
	return do(ctx, b, b.writes, "end", func(ctx context.Context) (store.Entry, error) {
		return b.next.End(ctx, e, reason)
	})
}

// Remove implements store.Registry.
func (b *Backend) Remove(ctx context.Context, e store.Entry) error {
	return run(ctx, b, b.writes, "remove", func(ctx context.Context) error {
		return b.next.Remove(ctx, e)
	})
}

// Reap implements store.Registry. It asks all parts of a backend, and nobody waits for it:
// that one part is gone says nothing of the others, which requests go on to use.
func (b *Backend) Reap(ctx context.Context, limit int) ([]store.Entry, error) {
	return do(ctx, b, b.writes, "reap", func(ctx context.Context) ([]store.Entry, error) {
		claimed, err := b.next.Reap(ctx, limit)
		if err != nil {
			err = partly{err}
		}
		return claimed, err
	})
}

// A partly is an error of a call that asked all parts of a backend.
type partly struct{ error }

func (p partly) Unwrap() error { return p.error }

// Watch implements store.Watcher. It lasts, and finds its way back itself.
func (b *Backend) Watch(ctx context.Context, beat time.Duration, feed store.Feed) error {
	return b.next.Watch(ctx, beat, feed)
}

// Append implements store.Journal.
func (b *Backend) Append(ctx context.Context, data []byte) error {
	return run(ctx, b, b.writes, "append", func(ctx context.Context) error {
		return b.next.Append(ctx, data)
	})
}

// Follow implements store.Journal. It lasts, and finds its way back itself.
func (b *Backend) Follow(ctx context.Context, ready func(), told func(data []byte)) error {
	return b.next.Follow(ctx, ready, told)
}

// Acquire implements store.Leaser. What is done with the lease is guarded too.
func (b *Backend) Acquire(ctx context.Context, name string, ttl time.Duration) (store.Lease, error) {
	l, err := do(ctx, b, b.writes, "acquire", func(ctx context.Context) (store.Lease, error) {
		return b.next.Acquire(ctx, name, ttl)
	})
	if err != nil {
		return nil, err
	}
	return &lease{l, b}, nil
}

type lease struct {
	store.Lease
	b *Backend
}

func (l *lease) Renew(ctx context.Context, ttl time.Duration) error {
	return run(ctx, l.b, l.b.writes, "renew lease", func(ctx context.Context) error {
		return l.Lease.Renew(ctx, ttl)
	})
}

func (l *lease) Release(ctx context.Context) error {
	return run(ctx, l.b, l.b.writes, "release lease", l.Lease.Release)
}
