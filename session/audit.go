package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// A Finding is where the registry and the store differ.
type Finding struct {
	Ref coatcheck.Ref
	// Entry is that of a session that is listed while its record is gone: it takes a place
	// that nobody has. It is nil for a record that nobody lists: the session can be used,
	// and nobody can find it.
	Entry *Entry

	record string
}

// An Audit is what a comparison of registry and store came to.
type Audit struct {
	Listed   int // live entries
	Records  int // sessions in the store
	Findings []Finding
}

// How long an audit leaves alone what looks like a difference before it looks again.
const (
	// AuditPause is longer than a session takes to begin or to end, and than an entry is
	// listed beyond its record's end.
	AuditPause = listedLonger + 2*time.Second
	// RepairPause is also longer than it takes a session in use to list itself again.
	RepairPause = AuditPause + 30*time.Second
)

// Audit compares the registry with the store, both of which it walks over, and looks at what
// differs again after the pause. Sessions that begin and end meanwhile are no findings.
// What it remembers grows with the differences, not with the sessions.
func (m *Manager) Audit(ctx context.Context, kept store.Lister, pause time.Duration) (Audit, error) {
	var a Audit
	suspects := make(map[coatcheck.Ref]Finding)
	for listed, err := range kept.Entries(ctx, m.tenantName()) {
		if err != nil {
			return a, fmt.Errorf("session: audit: %w", err)
		}
		if listed.Ending != "" {
			continue // somebody is at it
		}
		a.Listed++
		if there, err := m.hasRecord(ctx, listed.Record); err != nil {
			return a, err
		} else if !there {
			e, _ := m.describe(listed) // one of another version is a finding as well
			suspects[e.Ref] = Finding{Ref: e.Ref, Entry: &e, record: listed.Record}
		}
	}
	for key, err := range kept.Keys(ctx, m.Jar.Session()+"-") {
		if err != nil {
			return a, fmt.Errorf("session: audit: %w", err)
		}
		if !isHandle(m.Jar.Session(), key) {
			continue // a sign-in that was used once, say
		}
		a.Records++
		ref := coatcheck.MakeRef(key)
		if e, err := m.listedAs(ctx, ref); err != nil {
			return a, fmt.Errorf("session: audit: %w", err)
		} else if e == nil {
			suspects[ref] = Finding{Ref: ref, record: key}
		}
	}
	if len(suspects) == 0 {
		return a, nil
	}
	select {
	case <-ctx.Done():
		return a, ctx.Err()
	case <-time.After(pause):
	}
	lives := make(map[coatcheck.Ref]bool) // of the suspects that are listed: not ending
	for listed, err := range kept.Entries(ctx, m.tenantName()) {
		if err != nil {
			return a, fmt.Errorf("session: audit: %w", err)
		}
		if _, ok := suspects[coatcheck.Ref(listed.ID)]; ok {
			lives[coatcheck.Ref(listed.ID)] = listed.Ending == ""
		}
	}
	for ref, f := range suspects {
		there, err := m.hasRecord(ctx, f.record)
		if err != nil {
			return a, err
		}
		live, listed := lives[ref]
		if f.Entry != nil && live && !there || f.Entry == nil && !listed && there {
			a.Findings = append(a.Findings, f)
		}
	}
	slices.SortFunc(a.Findings, func(f, g Finding) int { return strings.Compare(string(f.Ref), string(g.Ref)) })
	return a, nil
}

// Unlisted counts the findings of sessions that nobody lists. If most records are unlisted,
// the registry was lost, or this is not the nodes' key ring.
func (a Audit) Unlisted() (n int) {
	for _, f := range a.Findings {
		if f.Entry == nil {
			n++
		}
	}
	return n
}

// Repair takes a session whose record is gone off the list, and ends one that nobody lists.
func (m *Manager) Repair(ctx context.Context, f Finding) error {
	if f.Entry != nil {
		return m.endListed(ctx, f.Entry.listed, coatcheck.ReasonLost, nil)
	}
	if e, err := m.listedAs(ctx, f.Ref); err != nil {
		return fmt.Errorf("session: repair: %w", err)
	} else if e != nil {
		return nil // it is listed by now
	}
	if err := m.Store.Delete(ctx, f.record); err != nil {
		return fmt.Errorf("session: repair: %w", err)
	}
	m.forget(f.record)
	return nil
}

func (m *Manager) hasRecord(ctx context.Context, key string) (bool, error) {
	_, err := m.Store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("session: audit: %w", err)
	}
	return true, nil
}

// listedAs returns the entry that is found by a session's name, or nil. Where it is nil, an
// index may be all that has lost it.
func (m *Manager) listedAs(ctx context.Context, ref coatcheck.Ref) (*Entry, error) {
	for e, err := range m.Find(ctx, Query{Ref: ref}) {
		if err != nil && !errors.Is(err, ErrUndescribed) {
			return nil, err
		}
		return &e, nil
	}
	return nil, nil
}
