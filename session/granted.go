package session

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"
)

// RevokeGranted revokes at the provider what was granted for sessions that m has ended, each
// token in one try, and returns how many may not have been revoked and why the first was not.
// It is for whoever ends sessions and does not call Run, which does the same beside requests.
func (m *Manager) RevokeGranted(ctx context.Context) (left int, err error) {
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(revokers)
	for {
		select {
		case g := <-m.grants:
			group.Go(func() error {
				cause := m.tryRevoke(ctx, g)
				if cause != nil {
					mu.Lock()
					defer mu.Unlock()
					left++
				}
				return cause
			})
		default:
			err = group.Wait()
			return left, err
		}
	}
}

// FinishLeft tries once more to strike off the list what has ended and could not be marked as
// ending, and returns how many sessions are left: nobody can use them, but they may keep their
// places, and nobody was told of their ends. As RevokeGranted, before which it is called, it is
// for whoever does not call Run.
func (m *Manager) FinishLeft(ctx context.Context) (left int) {
	m.finishLeft(ctx)
	return m.upkeep.waiting()
}
