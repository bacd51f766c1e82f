package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/coatcheck/coatcheck/store"
)

// A ledger has every cookie that a fleet has handed out, and says of how many too many can
// be used. It is safe for concurrent use.
type ledger struct {
	limits store.Limits
	judges []*judge // of which any may be asked

	mu      sync.Mutex
	held    []sitting // all
	current []sitting // those that could be used when they were looked at last
	gone    map[string]bool
	looks   int
	most    int // that could be used at once
}

// A judge says what can be used. It asks the store each time: a node's near cache, breaker
// and deadline are no part of the verdict.
type judge struct {
	mu     sync.Mutex // one look at a time
	usable func(s sitting) (bool, error)
}

func (l *ledger) acknowledged(s sitting) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = append(l.held, s)
	l.current = append(l.current, s)
}

// look has a judge read what was acknowledged by now, unless it is busy, and reports a limit
// that does not hold.
//
// A cookie can be used from before it is acknowledged until its session ends, and never
// again. So all that were acknowledged when the look began, and could be used at any time
// since, could be used at that moment: all at once.
func (l *ledger) look(t testing.TB) {
	t.Helper()
	j := l.judges[rand.IntN(len(l.judges))]
	if !j.mu.TryLock() {
		return
	}
	defer j.mu.Unlock()
	l.mu.Lock()
	seen := slices.Clone(l.current)
	l.mu.Unlock()
	var usable, over []sitting
	for _, s := range seen {
		ok, err := j.usable(s)
		switch {
		case err != nil:
			t.Errorf("a judge can't tell: %v", err)
		case ok:
			usable = append(usable, s)
		default:
			over = append(over, s)
		}
	}
	if err := l.exceeded(usable); err != nil {
		t.Error(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone == nil {
		l.gone = make(map[string]bool)
	}
	for _, s := range over {
		l.gone[s.cookie] = true
	}
	l.current = slices.DeleteFunc(l.current, func(s sitting) bool { return l.gone[s.cookie] })
	l.looks++
	l.most = max(l.most, len(usable))
}

// exceeded says which limit is not kept by sessions that can all be used at once.
func (l *ledger) exceeded(usable []sitting) error {
	ofUser, ofApp := map[string]int{}, map[[2]string]int{}
	for _, s := range usable {
		ofUser[s.user]++
		ofApp[[2]string{s.user, s.app}]++
	}
	over := func(n, limit int) bool { return limit > 0 && n > limit }
	if over(len(usable), l.limits.Total) {
		return fmt.Errorf("%d sessions can be used, the limit is %d", len(usable), l.limits.Total)
	}
	for user, n := range ofUser {
		if over(n, l.limits.PerUser) {
			return fmt.Errorf("%s can use %d sessions, the limit is %d", user, n, l.limits.PerUser)
		}
	}
	for at, n := range ofApp {
		if over(n, l.limits.PerApp) {
			return fmt.Errorf("%s can use %d sessions at %s, the limit is %d", at[0], n, at[1], l.limits.PerApp)
		}
	}
	return nil
}

// review looks at every cookie there ever was, and returns those that can be used. It
// returns an error where a judge can't tell.
func (l *ledger) review(t testing.TB) (usable []sitting, err error) {
	t.Helper()
	l.mu.Lock()
	held, gone := slices.Clone(l.held), maps.Clone(l.gone)
	l.mu.Unlock()
	for _, s := range held {
		ok, err := l.judges[rand.IntN(len(l.judges))].usable(s)
		if err != nil {
			return nil, err
		}
		if ok && gone[s.cookie] {
			t.Errorf("a session of %s is back", s.user)
		}
		if ok {
			usable = append(usable, s)
		}
	}
	if err := l.exceeded(usable); err != nil {
		t.Error(err)
	}
	return usable, nil
}

// report says what was seen.
func (l *ledger) report() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%d acknowledged, looked at %d times, at most %d could be used at once", len(l.held), l.looks, l.most)
}
