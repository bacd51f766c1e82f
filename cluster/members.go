package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

const (
	// reportEvery is how often a node says that it lives, more or less.
	reportEvery = 10 * time.Second
	// reportAgain is how long after a report that failed the next one is made.
	reportAgain = 2 * time.Second
	// reportLimit bounds a report.
	reportLimit = 5 * time.Second
	// memberLife is for how long after its last report a node counts as live.
	memberLife = 30 * time.Second
	// Settles is how long a node has been listed when it knows of all others: each has
	// reported in that time, also where none could before.
	Settles = reportEvery*5/4 + reportAgain + reportLimit
	// listLife is how long the list stays when nobody writes it any more.
	listLife = time.Minute
	// attempts bounds how often a node tries to write the list before others do.
	attempts = 10
	// membersVersion is the version of the list's layout.
	membersVersion = 1
)

// A Member is a live node, as it describes itself.
type Member struct {
	Instance string   // names the process; no other one has it, before or after
	Node     string   // the node's name, for people
	Version  string   // of coatcheck
	Keys     []string // the IDs of the keys that it can open with
	Seals    string   // the ID of the key that it seals with
	// Since and Seen are when it reported first and last, by the store's clock. Who has not
	// reported for half a minute begins anew.
	Since, Seen time.Time
}

// MembersOptions are what Members need. All fields are required, except where the comment
// says what zero means.
type MembersOptions struct {
	Store store.Store
	Clock store.Clock
	// Key is the store key of the list. Nodes that belong together have the same.
	Key string
	// Self describes this node: Node, Version, Keys and Seals. It is called before each report,
	// and must not call Members. Nil: this process is none of the nodes, and only lists them.
	Self func() Member
	// Told is called after each report of Run with the live nodes, and whether no other can be
	// missing (Complete); may be nil.
	Told   func(live []Member, complete bool)
	Logger *slog.Logger // nothing is logged if nil
}

// Members are the live nodes of a cluster. Each of them reports to one record of the store,
// and drops from it who has not reported for half a minute. It is safe for concurrent use.
type Members struct {
	MembersOptions
	instance string
	sooner   chan struct{}
}

// NewMembers returns the Members that this process belongs to, under a name of its own.
func NewMembers(o MembersOptions) *Members {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Members{MembersOptions: o, instance: rand.Text(), sooner: make(chan struct{}, 1)}
}

// Run reports at once and every now and then until ctx ends; then it takes this node off
// the list. A store that can't be reached is asked again.
func (m *Members) Run(ctx context.Context) {
	defer m.leave(context.WithoutCancel(ctx))
	silent := false
	for ctx.Err() == nil {
		pause := reportEvery*3/4 + mathrand.N(reportEvery/2)
		live, err := m.Report(ctx)
		switch {
		case err == nil:
			silent = false
			if m.Told != nil {
				m.Told(live, m.Complete(live))
			}
		case ctx.Err() == nil:
			pause = reportAgain
			if !silent {
				m.Logger.WarnContext(ctx, "other nodes may not know of this one, trying again", "error", err)
			}
			silent = true
		}
		select {
		case <-ctx.Done():
		case <-m.sooner:
		case <-time.After(pause):
		}
	}
}

// Sooner has Run report as soon as it can: what Self says has changed.
func (m *Members) Sooner() {
	select {
	case m.sooner <- struct{}{}:
	default:
	}
}

// Report says that this node lives, and returns all that do. An error leaves open whether
// the others know of it.
func (m *Members) Report(ctx context.Context) ([]Member, error) {
	self := m.Self()
	self.Instance = m.instance
	var live []Member
	err := m.change(ctx, func(l *memberList, now time.Time) (time.Duration, error) {
		self.Since, self.Seen = now, now
		live = live[:0]
		for instance, data := range l.nodes {
			other, err := readMember(instance, data)
			switch {
			case err != nil:
				return 0, err
			case now.Sub(other.Seen) > memberLife:
				delete(l.nodes, instance)
			case instance == m.instance:
				self.Since = other.Since
			default:
				live = append(live, other)
			}
		}
		live = append(live, self)
		return listLife, l.put(self)
	})
	if err != nil {
		return nil, fmt.Errorf("cluster: report: %w", err)
	}
	sortMembers(live)
	return live, nil
}

// Complete tells whether no live node can be missing from what Report has returned: this one
// has been on the list for long enough that all others have reported since. It is not at the
// start, nor after the store was away or has lost the list, when the first to report is alone.
func (m *Members) Complete(live []Member) bool {
	return slices.ContainsFunc(live, func(l Member) bool { return l.Instance == m.instance && l.settled() })
}

// Settled tells whether no live node can be missing from what List has returned: one of them
// knows of all others. Where none is listed, that is known to who has looked for Settles.
func Settled(live []Member) bool { return slices.ContainsFunc(live, Member.settled) }

func (m Member) settled() bool { return m.Seen.Sub(m.Since) >= Settles }

// List returns the live nodes, as far as they have reported.
func (m *Members) List(ctx context.Context) ([]Member, error) {
	live, err := m.list(ctx)
	if err != nil {
		return nil, fmt.Errorf("cluster: list: %w", err)
	}
	return live, nil
}

func (m *Members) list(ctx context.Context) ([]Member, error) {
	rec, err := m.Store.Get(ctx, m.Key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	l, err := readList(rec.Value)
	if err != nil {
		return nil, err
	}
	now, err := m.Clock.Now(ctx)
	if err != nil {
		return nil, err
	}
	var live []Member
	for instance, data := range l.nodes {
		other, err := readMember(instance, data)
		if err != nil {
			return nil, err
		}
		if now.Sub(other.Seen) <= memberLife {
			live = append(live, other)
		}
	}
	sortMembers(live)
	return live, nil
}

// leave takes this node off the list. The list ends with the last one, but is never
// deleted: somebody may have come in between.
func (m *Members) leave(ctx context.Context) {
	err := m.change(ctx, func(l *memberList, _ time.Time) (time.Duration, error) {
		if _, ok := l.nodes[m.instance]; !ok {
			return 0, nil
		}
		if delete(l.nodes, m.instance); len(l.nodes) == 0 {
			return store.MinTTL, nil
		}
		return listLife, nil
	})
	if err != nil {
		m.Logger.InfoContext(ctx, "other nodes will count this one as live for a while", "error", err)
	}
}

// change reads the list, has it edited, and writes it for the lifetime that edit returns,
// unless that is zero. If others have written meanwhile, all of it is done again.
func (m *Members) change(ctx context.Context, edit func(l *memberList, now time.Time) (time.Duration, error)) error {
	ctx, cancel := context.WithTimeout(ctx, reportLimit)
	defer cancel()
	for attempt := 1; ; attempt++ {
		err := m.tryChange(ctx, edit)
		retry := errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrNotFound)
		if !retry || attempt == attempts {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(mathrand.N(time.Duration(attempt) * 10 * time.Millisecond)):
		}
	}
}

func (m *Members) tryChange(ctx context.Context, edit func(l *memberList, now time.Time) (time.Duration, error)) error {
	rec, err := m.Store.Get(ctx, m.Key)
	fresh := errors.Is(err, store.ErrNotFound)
	if err != nil && !fresh {
		return err
	}
	l := newList()
	if !fresh {
		if l, err = readList(rec.Value); err != nil {
			return err
		}
	}
	now, err := m.Clock.Now(ctx)
	if err != nil {
		return err
	}
	life, err := edit(l, now)
	if err != nil || life == 0 {
		return err
	}
	data, err := l.marshal()
	if err != nil {
		return err
	}
	if fresh {
		return m.Store.Create(ctx, m.Key, data, life)
	}
	return m.Store.Replace(ctx, m.Key, rec.Revision, data, life)
}

func sortMembers(list []Member) {
	slices.SortFunc(list, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Instance, b.Instance))
	})
}

// A memberList is the list as it is kept: JSON, of which a node changes its own entry alone.
// What it does not know, of the list and of other nodes' entries, it keeps as it is.
type memberList struct {
	fields map[string]json.RawMessage
	nodes  map[string]json.RawMessage // by instance
}

// memberEntry is a Member as it is kept. Times are Unix milliseconds.
type memberEntry struct {
	Node    string   `json:"node"`
	Version string   `json:"version"`
	Keys    []string `json:"keys"`
	Seals   string   `json:"seals"`
	Since   int64    `json:"since"`
	Seen    int64    `json:"seen"`
}

func newList() *memberList {
	return &memberList{
		fields: map[string]json.RawMessage{"version": json.RawMessage(fmt.Sprint(membersVersion))},
		nodes:  map[string]json.RawMessage{},
	}
}

func readList(data []byte) (*memberList, error) {
	l, version := &memberList{}, 0
	if err := json.Unmarshal(data, &l.fields); err != nil {
		return nil, fmt.Errorf("the list of nodes is malformed: %w", err)
	}
	if err := json.Unmarshal(l.fields["version"], &version); err != nil || version != membersVersion {
		return nil, fmt.Errorf("the list of nodes has version %.20s, this coatcheck reads version %d", l.fields["version"], membersVersion)
	}
	if err := json.Unmarshal(l.fields["nodes"], &l.nodes); err != nil || l.nodes == nil {
		return nil, errors.New("the list of nodes is malformed: it has no nodes")
	}
	return l, nil
}

func (l *memberList) put(m Member) error {
	data, err := json.Marshal(memberEntry{m.Node, m.Version, m.Keys, m.Seals, m.Since.UnixMilli(), m.Seen.UnixMilli()})
	l.nodes[m.Instance] = data
	return err
}

func (l *memberList) marshal() ([]byte, error) {
	nodes, err := json.Marshal(l.nodes)
	if err != nil {
		return nil, err
	}
	l.fields["nodes"] = nodes
	return json.Marshal(l.fields)
}

func readMember(instance string, data []byte) (Member, error) {
	var e memberEntry
	if err := json.Unmarshal(data, &e); err != nil || e.Seen == 0 {
		return Member{}, errors.New("an entry of the list of nodes can't be read")
	}
	return Member{instance, e.Node, e.Version, e.Keys, e.Seals, time.UnixMilli(e.Since), time.UnixMilli(e.Seen)}, nil
}
