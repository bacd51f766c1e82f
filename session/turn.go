package session

import (
	"context"
	"sync"
)

// turns let the sign-ins of one user pass one after the other on this node. Whoever signs
// in ends all sessions of the user that have to give way, those among them that another
// sign-in has begun to end: so of many at once each would end the same ones again, and all
// of them together take the square of the time. Limits don't depend on it.
type turns struct {
	mu    sync.Mutex
	users map[string]*turn // with somebody in it or waiting
}

type turn struct {
	taken chan struct{} // holds one
	count int           // of those in it or waiting
}

// take waits for the user's turn, and returns what ends it; or the context's error.
func (t *turns) take(ctx context.Context, user string) (end func(), err error) {
	t.mu.Lock()
	u := t.users[user]
	if u == nil {
		if t.users == nil {
			t.users = make(map[string]*turn)
		}
		u = &turn{taken: make(chan struct{}, 1)}
		t.users[user] = u
	}
	u.count++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if u.count--; u.count == 0 {
			delete(t.users, user)
		}
	}
	select {
	case u.taken <- struct{}{}:
		return func() { <-u.taken; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
