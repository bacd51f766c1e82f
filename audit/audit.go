// Package audit tells what happens to sessions: to the log of the node where it happened,
// and through the store's journal to the code of every node.
//
// An event may be told more than once, by a node that tries again or by several that found
// the same thing. Its ID stays the same, and whoever subscribes hears it once.
package audit

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

const (
	// remembered is how long a repeat is noticed, at least, unless more events than
	// maxRemembered come meanwhile. A journal repeats what it keeps.
	remembered    = 2 * store.JournalLife
	maxRemembered = 1 << 18
	// complainEvery is how often entries of the journal that say nothing are logged.
	complainEvery = time.Minute
)

// Options are what a Log needs.
type Options struct {
	Journal store.Journal // required
	Logger  *slog.Logger  // required
	Node    string        // names this node in its events; required, and different on each
	Now     func() time.Time
}

// A Log takes down events. It is safe for concurrent use.
type Log struct {
	Options
	logged *recent // in this node's log

	mu          sync.Mutex // held while an event is told
	told        *recent
	skipped     int       // entries that said nothing, and that no line has told of
	complained  time.Time // when one did last
	subscribers subscribers
}

// New returns a Log. Until Run it hears of nothing, but takes down what it is given.
func New(o Options) *Log {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Log{
		Options: o,
		logged:  newRecent(maxRemembered, remembered),
		told:    newRecent(maxRemembered, remembered),
	}
}

// Record logs e, unless it is in this node's log already, and appends it to the journal.
// Node and Time are set where they are empty; ID must be set. An error says that the append
// failed: whether anybody hears of e, here or elsewhere, is unknown, and recording it again
// does no harm.
func (l *Log) Record(ctx context.Context, e coatcheck.Event) error {
	if e.Node == "" {
		e.Node = l.Node
	}
	if e.Time.IsZero() {
		e.Time = l.Now()
	}
	data, err := encode(e)
	if err != nil {
		return fmt.Errorf("audit: record: %w", err)
	}
	if l.logged.first(e.ID, l.Now()) {
		l.line(ctx, slog.LevelInfo, e)
	}
	if err := l.Journal.Append(ctx, data); err != nil {
		return fmt.Errorf("audit: record %s: %w", e.Type, err)
	}
	return nil
}

// line writes e to the log.
func (l *Log) line(ctx context.Context, level slog.Level, e coatcheck.Event) {
	if !l.Logger.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 12)
	for _, a := range []struct{ key, value string }{
		{"event", string(e.Type)},
		{"id", e.ID},
		{"node", e.Node},
		{"tenant", e.Tenant},
		{"issuer", e.Issuer},
		{"user", e.Subject},
		{"session", string(e.Ref)},
		{"app", e.App},
		{"reason", string(e.Reason)},
		{"limit", e.Limit},
	} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.key, a.value))
		}
	}
	l.Logger.LogAttrs(ctx, level, "session event", append(attrs, slog.Time("at", e.Time))...)
}

// Run tells the subscribers what any node records, this one included, until ctx ends; then
// it returns the context's error, or an earlier one of the journal's.
func (l *Log) Run(ctx context.Context) error {
	return l.Journal.Follow(ctx, func() {}, func(data []byte) { l.hear(ctx, data) })
}

// hear tells of one entry of the journal.
func (l *Log) hear(ctx context.Context, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.Now()
	e, err := decode(data)
	if err != nil {
		l.skip(ctx, now, err)
		return
	}
	if !l.told.first(e.ID, now) {
		return
	}
	if l.logged.first(e.ID, now) { // from elsewhere
		level := slog.LevelDebug // the node that told it has it in its log
		if strings.HasPrefix(e.Node, coatcheck.OperatorAt) {
			level = slog.LevelInfo // a command told it, and has none
		}
		l.line(ctx, level, e)
	}
	for _, s := range l.subscribers.all() {
		l.tell(ctx, s, e)
	}
}

// skip notes that an entry says nothing. Whatever it holds instead stays out of the log.
func (l *Log) skip(ctx context.Context, now time.Time, err error) {
	l.skipped++
	if !l.complained.IsZero() && now.Sub(l.complained) < complainEvery {
		return
	}
	l.Logger.WarnContext(ctx, "the journal holds entries that are no events of this version", "entries", l.skipped, "error", err)
	l.skipped, l.complained = 0, now
}

// tell calls one subscriber. Its panic is its own; the panic's text may quote anything and
// stays out of the log (invariant 13).
func (l *Log) tell(ctx context.Context, s *subscriber, e coatcheck.Event) {
	defer func() {
		if p := recover(); p != nil {
			l.Logger.ErrorContext(ctx, "a subscriber to events panicked", "event", string(e.Type), "id", e.ID,
				"type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
		}
	}()
	s.told(e)
}

// Subscribe has told called with every event that Run hears, once, and one after the
// other. It must be quick, since everybody waits. After cancel no call begins; one that is
// under way may still end.
func (l *Log) Subscribe(told func(coatcheck.Event)) (cancel func()) {
	s := &subscriber{told}
	l.subscribers.add(s)
	return func() { l.subscribers.remove(s) }
}

type subscriber struct{ told func(coatcheck.Event) }

// subscribers are a list that changes while it is read.
type subscribers struct {
	mu   sync.Mutex
	list []*subscriber // never changed in place
}

func (s *subscribers) all() []*subscriber {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list
}

func (s *subscribers) add(one *subscriber) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(slices.Clone(s.list), one)
}

func (s *subscribers) remove(one *subscriber) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = slices.DeleteFunc(slices.Clone(s.list), func(other *subscriber) bool { return other == one })
}
