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
