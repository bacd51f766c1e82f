package redis

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"

	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck/store"
)

// reapRounds bounds how often one Reap goes on when what was due turned out not to be.
const reapRounds = 8

// Reap implements store.Registry. Where it returns an error, what it returns beside that
// is claimed all the same. Options.Timeout bounds each of its batches.
func (s *Store) Reap(ctx context.Context, limit int) ([]store.Entry, error) {
	var claimed []store.Entry
	for round := 0; round < reapRounds && len(claimed) < limit; round++ {
		members, err := s.claimDue(ctx, limit-len(claimed))
		found, claimErr := s.claim(ctx, members)
		claimed = append(claimed, found...)
		if err = errors.Join(err, claimErr); err != nil {
			return claimed, wrap("reap", err)
		}
		if len(members) == 0 {
			break
		}
	}
	return claimed, nil
}

// A due member of the expiry index is kept from other reapers as long as its score is the
// one that it was given.
type due struct {
	key, member, score string
}

// claimDue takes up to n due members from the shards, in random order, so that nodes get
// in each other's way as little as can be. An error of one shard does not keep those of
// others back.
func (s *Store) claimDue(ctx context.Context, n int) ([]due, error) {
	order := rand.Perm(dueShards)
	counts := make([]call, dueShards)
	for i, shard := range order {
		counts[i] = call{script: dueScript, key: s.dueKey(strconv.Itoa(shard))}
	}
	var claims []call
	var failed error
	for i, r := range s.doPage(ctx, counts...) {
		here, err := r.AsInt64()
		if err != nil {
			failed = err
			continue
		}
		if take := min(int(here), n); take > 0 {
			n -= take
			claims = append(claims, call{script: claimDueScript, key: counts[i].key, args: []string{
				strconv.Itoa(take), ms(store.ClaimLife), ms(overdueLife),
			}})
		}
	}
	var found []due
	for i, r := range s.doPage(ctx, claims...) {
		answer, err := r.AsStrSlice()
		if err != nil {
			failed = err
			continue
		}
		for _, member := range answer[1:] {
			found = append(found, due{claims[i].key, member, answer[0]})
		}
	}
	return found, failed
}

// claim asks the users' hashes about due members, and corrects the index where it was
// wrong.
func (s *Store) claim(ctx context.Context, members []due) ([]store.Entry, error) {
	calls := make([]call, len(members))
	entries := make([]store.Entry, len(members))
	for i, d := range members {
		e, ok := named(d.member)
		if !ok {
			return nil, errForeign
		}
		entries[i] = e
		calls[i] = call{script: claimScript, key: s.userKey(e.Tenant, e.User), args: []string{
			e.ID, store.ReasonExpired, ms(store.ClaimLife), ms(store.ClaimLife + overdueLife),
		}}
	}
	var claimed []store.Entry
	var wrong []call
	var failed error
	for i, r := range s.doPage(ctx, calls...) {
		said, err := texts(r)
		if err != nil {
			failed = err
			continue
		}
		again := "-1"
		switch said[0] {
		case "claimed":
			e, err := unpack(said[1])
			if err != nil {
				failed = err
				continue
			}
			e.Tenant, e.User, e.ID = entries[i].Tenant, entries[i].User, entries[i].ID
			claimed = append(claimed, e)
			continue
		case "look":
			again = said[1]
		}
		d := members[i]
		wrong = append(wrong, call{script: lookAgainScript, key: d.key, args: []string{d.member, again, ms(overdueLife), d.score}})
	}
	for _, r := range s.doPage(ctx, wrong...) {
		if err := r.Error(); err != nil && !rueidis.IsRedisNil(err) {
			failed = err
		}
	}
	return claimed, failed
}
