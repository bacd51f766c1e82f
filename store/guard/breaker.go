package guard

import (
	"sync"
	"time"
)

// A State is what a breaker does with calls.
type State int

// The states, from good to bad.
const (
	Closed   State = iota // lets all through
	HalfOpen              // tries a few
	Open                  // refuses all
)

// String returns the state's name, as it stands in logs.
func (s State) String() string { return [...]string{"closed", "half-open", "open"}[s] }

const (
	// tolerated calls may fail in a row, and tolerance may pass from the last answer or
	// the start of the first of them, before the breaker opens: both. A connection that
	// breaks takes many calls with it at once, and is replaced in no time.
	tolerated = 5
	tolerance = time.Second
	// pause is how long an open breaker refuses before it tries again.
	pause = time.Second
	// probes is how many calls a half-open breaker has under way at most, and how many
	// answers in a row close it.
	probes = 3
)

// A verdict is what a call says of the backend.
type verdict int

const (
	unheard  verdict = iota // nothing
	answered                // it is there
	failed
)

// A breaker is closed while the backend answers, and open after it has not for a while.
// Only calls that began in its present state count.
type breaker struct {
	// turned is told that the breaker has opened, and why, and that it is closed again;
	// not of what lies between.
	turned func(now State, cause error)

	mu    sync.Mutex
	state State
	round uint64 // counts changes of state

	// While closed: when the backend answered last, how many calls have failed since,
	// and from when on it is to blame for them.
	heard  time.Time
	failed int
	since  time.Time

	until time.Time // while open: when to try again

	// While half-open: how many calls are under way and how many were answered.
	tried, passed int
}

// A turn is what a call that was let through reports back with.
type turn struct {
	round uint64
	began time.Time
}

func (b *breaker) now() State {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

// refuses tells whether a call that came now would be refused.
func (b *breaker) refuses() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.full(time.Now())
}

// full is refuses for who holds b.mu.
func (b *breaker) full(now time.Time) bool {
	switch b.state {
	case Open:
		return now.Before(b.until)
	case HalfOpen:
		return b.tried >= probes
	default:
		return false
	}
}

// allow lets a call through, which must report its end, or refuses it.
func (b *breaker) allow() (turn, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if b.full(now) {
		return turn{}, false
	}
	if b.state == Open {
		b.become(HalfOpen)
	}
	if b.state == HalfOpen {
		b.tried++
	}
	return turn{b.round, now}, true
}

// report ends a call that allow let through.
func (b *breaker) report(t turn, v verdict, cause error) {
	if b == nil {
		return // of a step that does not count
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if t.round != b.round {
		return
	}
	now := time.Now()
	if b.state == HalfOpen {
		b.tried--
		switch {
		case v == failed:
			b.open(now)
		case v == answered:
			b.pass()
		}
		return
	}
	switch v {
	case answered:
		b.heard, b.failed = now, 0
	case failed:
		since := t.began
		if b.heard.After(since) {
			since = b.heard
		}
		if b.failed == 0 || since.Before(b.since) {
			b.since = since
		}
		if b.failed++; b.failed >= tolerated && now.Sub(b.since) >= tolerance {
			b.open(now)
			b.turned(Open, cause)
		}
	}
}

// hint says that the backend was heard otherwise: an open breaker need not wait on.
func (b *breaker) hint() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == Open {
		b.become(HalfOpen)
	}
}

// begun returns the round in which a ping begins, for stand.
func (b *breaker) begun() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.round
}

// stand is hint, and counts a ping's answer as a call's if the round is still that of began
// and no call is under way: without calls the breaker would stay half-open.
func (b *breaker) stand(began uint64) {
	b.hint()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == HalfOpen && b.round == began && b.tried == 0 {
		b.pass()
	}
}

// pass counts an answer while half-open, for who holds b.mu.
func (b *breaker) pass() {
	if b.passed++; b.passed >= probes {
		b.become(Closed)
		b.turned(Closed, nil)
	}
}

func (b *breaker) open(now time.Time) {
	b.become(Open)
	b.until = now.Add(pause)
}

// become changes the state, and forgets what the earlier one has counted.
func (b *breaker) become(s State) {
	b.state = s
	b.round++
	b.failed, b.tried, b.passed = 0, 0, 0
}
