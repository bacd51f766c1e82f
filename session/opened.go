package session

import (
	"bytes"
	"crypto/subtle"
	"strings"
	"sync"
	"time"

	"github.com/coatcheck/coatcheck"
)

// opened remembers what records opened to, so that a session in use is not decrypted
// and decoded for each of its requests, which is most of the cost of loading it.
//
// It decides nothing. The store is asked every time, and only the very bytes that it
// returned before, together with the very ticket, have an answer here: the one that
// opening them again would give. So a session that ended, changed or moved is never
// served from here.
//
// The zero value is empty and ready, and safe for concurrent use. Handles are random, so
// its shards share the work evenly and no lock is everybody's.
type opened struct {
	shards [openedShards]openedShard
}

// An openedShard is bounded by two generations. What is used moves to the young one; when
// that is full or old, it becomes the old one and what was there is forgotten.
type openedShard struct {
	mu         sync.Mutex
	young, old map[string]*openedRecord // by handle
	size       int                      // bytes of young, more or less
	born       time.Time                // of young
}

const (
	openedShards = 16
	openedSize   = 8 << 20 / openedShards // bytes of a generation
	openedAge    = time.Minute            // of a generation
)

type openedRecord struct {
	secret  [secretSize]byte
	sealed  []byte
	session *coatcheck.Session
}

// shard returns the shard of a handle, by its last digit.
func (o *opened) shard(handle string) *openedShard {
	digit := handle[len(handle)-1]
	return &o.shards[(digit&15+digit>>6*9)%openedShards]
}

// find returns the session that sealed opens to with the ticket, or nil if that is not
// known here.
func (o *opened) find(now time.Time, t ticket, sealed []byte) *coatcheck.Session {
	h := o.shard(t.handle)
	h.mu.Lock()
	defer h.mu.Unlock()
	r, young := h.young[t.handle]
	if !young {
		r = h.old[t.handle]
	}
	// The secret is compared in constant time, as it is where it opens the record.
	if r == nil || subtle.ConstantTimeCompare(r.secret[:], t.secret[:]) != 1 || !bytes.Equal(r.sealed, sealed) {
		return nil
	}
	if !young || now.Sub(h.born) > openedAge {
		h.put(now, t.handle, r)
	}
	return r.session
}

// keep remembers that sealed opens to s with the ticket. It keeps sealed itself.
func (o *opened) keep(now time.Time, t ticket, sealed []byte, s *coatcheck.Session) {
	h := o.shard(t.handle)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.put(now, t.handle, &openedRecord{secret: t.secret, sealed: sealed, session: s})
}

func (h *openedShard) put(now time.Time, handle string, r *openedRecord) {
	if h.young == nil || h.size > openedSize || now.Sub(h.born) > openedAge {
		h.old, h.young = h.young, make(map[string]*openedRecord)
		h.size, h.born = 0, now
	}
	// The handle is part of the request's header, which must not stay with it. The
	// session is about as large as what it was sealed into.
	h.young[strings.Clone(handle)] = r
	h.size += 2*len(r.sealed) + len(handle) + 512
}

// forget removes what is remembered of an ended session.
func (o *opened) forget(handle string) {
	h := o.shard(handle)
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.young, handle)
	delete(h.old, handle)
}
