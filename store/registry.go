package store

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/coatcheck/coatcheck"
)

// Errors of a Registry that callers decide on; see also ErrNotFound and ErrTooLarge.
var (
	// ErrEnding: the session is being ended, or its entry has expired and was claimed
	// for that. Nothing brings it back.
	ErrEnding = errors.New("store: session is ending")
	// ErrBadEntry: a name in an entry or a query is not one that may stand in a key.
	// Nothing was sent to the backend.
	ErrBadEntry = errors.New("store: bad entry")
)

// An Entry is a session as the registry lists it. There is nothing secret in it: Record
// opens nothing without the ticket, the other names are keyed hashes, or empty, and Data
// describes the session to those who may look at the list.
type Entry struct {
	ID     string // names the session, once in its tenant; required
	Tenant string // required
	User   string // of one tenant; required
	App    string // of one tenant; may be empty
	SID    string // the provider's session, of one tenant; may be empty
	Record string // the key of the session's record in the Store
	Data   []byte // opaque, at most MaxEntryData bytes

	// The registry itself keeps these, by its own clock, to the millisecond at least; in
	// entries that it is given they mean nothing.
	Started time.Time // when it was admitted
	Seen    time.Time // when it was admitted or renewed last
	Expires time.Time
	Ending  string // why the session is being ended; empty while it lives
}

// Bounds of an entry, checked before anything is sent.
const (
	MaxName      = 64      // bytes of ID, Tenant, User, App, SID and of a reason
	MaxEntryData = 4 << 10 // bytes of Data
)

// What Ending says where the registry itself marked an entry.
const (
	ReasonEvicted  = string(coatcheck.ReasonEvicted)  // by Admit, for the sake of a limit
	ReasonReplaced = string(coatcheck.ReasonReplaced) // by Admit, in whose place another one is
	ReasonExpired  = "expired"                        // by Reap
)

const (
	// EndingPatience is how long after it was marked an ending entry is left to whoever
	// marked it. Then Reap hands it to any node.
	EndingPatience = 10 * time.Second
	// ClaimLife is how long an entry that Reap has handed out is not handed out again.
	ClaimLife = 30 * time.Second
)

// A Registry lists the live sessions of the whole cluster. All methods are safe for
// concurrent use, honour the context's deadline and keep no slice they are given. An
// error that is none of this package's leaves the outcome open.
//
// The order of calls makes the list complete: a session's record can be used only after
// Admit, its life is extended only after Renew, and Remove comes after the record was
// deleted. So a listed session may be gone already, and a usable one is always listed.
//
// No method walks over all keys or all sessions, and the time of none but Find grows with
// the number of sessions of other users.
type Registry interface {
	// Admit lists e as live for ttl, in one atomic step for its user: it counts the user's
	// live entries, leaves out the one called replaces, marks as many as have to give way
	// as ending with ReasonEvicted (the replaced one: ReasonReplaced), and inserts e.
	// Expired and ending entries are not counted.
	//
	// It returns all entries of the user that are ending, whoever marked them: the limits
	// hold once the records of all of them are deleted, so the caller does that before
	// anybody gets the new session. It returns a *LimitError where nobody has to give way
	// or Total is reached, and ErrBadEntry or ErrTooLarge for an entry that can't be
	// listed. An entry of the same ID is overwritten.
	//
	// Total is counted by seats. A seat is reserved first and lives as long as its entry;
	// the entry that replaces another one takes over its seat. So Admit may refuse for a
	// seat whose session has just gone, but never lets one too many in.
	Admit(ctx context.Context, e Entry, ttl time.Duration, limits Limits, replaces string) (ending []Entry, err error)

	// Renew moves the end of e to ttl from now, never closer, and its Seen to now. Where e
	// is not listed, or not fully, it is listed again, whatever the limits: a session that
	// is in use and was lost from the list is counted from now on. Where it is, it stays as
	// Admit was given it: e may be described by a node of another version, which knows less.
	// It returns ErrEnding, and changes nothing, where e is ending.
	Renew(ctx context.Context, e Entry, ttl time.Duration) error

	// End marks an entry as ending: listed, not counted, never renewed. It returns the
	// entry as it is now; of two reasons the first one stays. Tenant, User and ID name it.
	// It returns ErrNotFound where it is not listed.
	End(ctx context.Context, e Entry, reason string) (Entry, error)

	// Remove takes an entry off the list, and gives its seat back. An absent one is not
	// an error. All names of e must be what Admit was given.
	Remove(ctx context.Context, e Entry) error

	// Find yields the entries that match q and have not expired, ending ones included, in
	// no particular order, as pages are read; an entry that changes meanwhile may come
	// twice. After an error it yields nothing more.
	Find(ctx context.Context, q Query) iter.Seq2[Entry, error]

	// Reap claims up to max entries that have expired, or have been ending for longer than
	// EndingPatience, for this caller and ClaimLife. An expired one is marked as ending
	// with ReasonExpired. The caller ends what is left of the session, records why, and
	// acknowledges by Remove; an entry that nobody acknowledged is handed out again, so
	// each is handed out at least once. Reap also trims what lost writes have left of
	// indexes. It is for any node, at any time. What it returns beside an error is claimed
	// all the same.
	Reap(ctx context.Context, max int) ([]Entry, error)
}

// A Query says which entries. Tenant is required; of the others at most one is set.
type Query struct {
	Tenant string
	User   string
	SID    string
	ID     string
}

// CheckAdmit returns ErrBadEntry or ErrTooLarge if e can't be listed in the place of the
// entry called replaces, which may be empty. Registries call it, or one of those below,
// first.
func CheckAdmit(e Entry, replaces string) error {
	if replaces != "" && !goodName(replaces) {
		return ErrBadEntry
	}
	return CheckEntry(e)
}

// CheckNamed returns ErrBadEntry if e, of which nothing but the names counts, can't be listed.
func CheckNamed(e Entry) error {
	if !goodNames(e) {
		return ErrBadEntry
	}
	return nil
}

// CheckEntry returns ErrBadEntry or ErrTooLarge if e can't be listed.
func CheckEntry(e Entry) error {
	if !goodNames(e) {
		return ErrBadEntry
	}
	if len(e.Data) > MaxEntryData {
		return ErrTooLarge
	}
	return CheckKey(e.Record)
}

// CheckQuery returns ErrBadEntry if q names nothing that could be listed, or more than
// one thing.
func CheckQuery(q Query) error {
	set := 0
	for _, name := range []string{q.User, q.SID, q.ID} {
		if name != "" {
			set++
			if !goodName(name) {
				return ErrBadEntry
			}
		}
	}
	if !goodName(q.Tenant) || set > 1 {
		return ErrBadEntry
	}
	return nil
}

// CheckReason returns ErrBadEntry if reason is not a name.
func CheckReason(reason string) error {
	if !goodName(reason) {
		return ErrBadEntry
	}
	return nil
}

func goodNames(e Entry) bool {
	return goodName(e.ID) && goodName(e.Tenant) && goodName(e.User) &&
		(e.App == "" || goodName(e.App)) && (e.SID == "" || goodName(e.SID))
}

// goodName accepts what needs no quoting in any backend's keys.
func goodName(s string) bool {
	if s == "" || len(s) > MaxName {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}
