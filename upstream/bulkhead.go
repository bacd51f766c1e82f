package upstream

import "sync/atomic"

// A Bulkhead bounds how many requests are under way to one app, so that an app that hangs
// does not fill the node with those who wait for it. A request is under way from when it is
// forwarded to the end of its answer, or until that turns into a WebSocket or an event
// stream: streams are meant to last, and are counted by [Streams].
//
// Nobody waits for a place: behind an app that hangs, a queue only makes the wait longer.
type Bulkhead struct {
	most     atomic.Int64
	underWay atomic.Int64
	refused  atomic.Uint64
}

// NewBulkhead returns a bulkhead for so many requests at once; zero is no bound. It is to be
// shared by all upstreams that lead to the same app.
func NewBulkhead(most int) *Bulkhead {
	b := new(Bulkhead)
	b.Bound(most)
	return b
}

// Bound sets how many requests there may be from now on; zero is no bound. Those that are
// under way stay.
func (b *Bulkhead) Bound(most int) { b.most.Store(int64(most)) }

// UnderWay returns how many requests are under way.
func (b *Bulkhead) UnderWay() int { return int(b.underWay.Load()) }

// Refused returns how many requests found no place so far.
func (b *Bulkhead) Refused() uint64 { return b.refused.Load() }

// enter takes a place, and tells whether there was one. When all are taken it may refuse
// one that could have had the place that another gives back at that moment; it never lets
// one too many through.
func (b *Bulkhead) enter() bool {
	if n, most := b.underWay.Add(1), b.most.Load(); n > most && most > 0 {
		b.underWay.Add(-1)
		b.refused.Add(1)
		return false
	}
	return true
}

// leave gives a place back.
func (b *Bulkhead) leave() { b.underWay.Add(-1) }
