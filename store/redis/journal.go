package redis

import (
	"context"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck/store"
)

var _ store.Journal = (*Store)(nil)

// The journal is one stream, the key "e" behind the prefix, which ends by itself. It is
// trimmed by time; journalMax bounds it where more is appended than that is meant for, at
// over 3,000 events a second.
const (
	journalMax  = 1 << 20
	journalPage = 256
	// followBlock is how long one read waits for an event. A new primary is found
	// within that time, and a connection that is dead without a word shortly after.
	followBlock = time.Second
	// followOverlap is how far a follower goes back after it was cut off. The next
	// primary's clock, which numbers the events, may be behind by that much.
	followOverlap = 5 * time.Second
	// Between two attempts of a follower that is cut off.
	minFollowDelay = 50 * time.Millisecond
	maxFollowDelay = time.Second
)

func (s *Store) journalKey() string { return s.prefix + "e" }

var appendScript = newScript(luaCommon, `
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'd', ARGV[1])
redis.call('XTRIM', KEYS[1], 'MINID', '~', string.format('%.0f', clock() - ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
`)

// Append implements store.Journal.
func (s *Store) Append(ctx context.Context, data []byte) error {
	if len(data) > store.MaxEvent {
		return wrap("append", store.ErrTooLarge)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return wrap("append", s.doAll(ctx, call{script: appendScript, key: s.journalKey(), args: []string{
		rueidis.BinaryString(data), ms(store.JournalLife), strconv.Itoa(journalMax),
	}}))
}

// Follow implements store.Journal. It waits on a connection of its own.
func (s *Store) Follow(ctx context.Context, ready func(), told func(data []byte)) error {
	delay := minFollowDelay
	// again waits after a failure, each time longer, and is false once ctx has ended.
	again := func() bool {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(delay/2 + rand.N(delay/2)):
		}
		delay = min(2*delay, maxFollowDelay)
		return true
	}
	start, err := s.lastEvent(ctx)
	for ; err != nil; start, err = s.lastEvent(ctx) {
		if !again() {
			return ctx.Err()
		}
	}
	ready()
	for heard, after := start, start; ; {
		events, err := s.events(ctx, after)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if after = heard.back(followOverlap); after.before(start) {
				after = start
			}
			if !again() {
				return ctx.Err()
			}
			continue
		}
		delay = minFollowDelay
		for _, e := range events {
			heard, after = e.id, e.id
			told(e.data)
		}
	}
}

// An event is one entry of the stream.
type event struct {
	id   eventID
	data []byte
}

// An eventID is the server's time in milliseconds and a number within that.
type eventID struct{ ms, seq uint64 }

func (id eventID) String() string {
	return strconv.FormatUint(id.ms, 10) + "-" + strconv.FormatUint(id.seq, 10)
}

func (id eventID) before(other eventID) bool {
	return id.ms < other.ms || id.ms == other.ms && id.seq < other.seq
}

func (id eventID) back(d time.Duration) eventID {
	return eventID{ms: id.ms - min(id.ms, uint64(d.Milliseconds()))}
}

func parseEventID(text string) (id eventID, err error) {
	ms, seq, _ := strings.Cut(text, "-")
	if id.ms, err = strconv.ParseUint(ms, 10, 64); err == nil {
		id.seq, err = strconv.ParseUint(seq, 10, 64)
	}
	return id, err
}

// lastEvent returns the ID behind which the next event will be.
func (s *Store) lastEvent(ctx context.Context) (eventID, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	c := s.redis()
	last, err := c.Do(ctx, c.B().Xrevrange().Key(s.journalKey()).End("+").Start("-").Count(1).Build().Pin()).AsXRange()
	if err != nil || len(last) == 0 {
		return eventID{}, err
	}
	return parseEventID(last[0].ID)
}

// events returns what comes after an event, and waits for it for followBlock.
func (s *Store) events(ctx context.Context, after eventID) ([]event, error) {
	ctx, cancel := context.WithTimeout(ctx, followBlock+s.timeout)
	defer cancel()
	c := s.redis()
	read, err := c.Do(ctx, c.B().Xread().Count(journalPage).Block(followBlock.Milliseconds()).
		Streams().Key(s.journalKey()).Id(after.String()).Build().Pin()).AsXRead()
	if rueidis.IsRedisNil(err) {
		return nil, nil
	}
	var events []event
	for _, e := range read[s.journalKey()] {
		id, err := parseEventID(e.ID)
		if err != nil {
			return nil, err
		}
		events = append(events, event{id, []byte(e.FieldValues["d"])})
	}
	return events, err
}
