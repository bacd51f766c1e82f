package redis

import (
	"context"
	"iter"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck/store"
)

// How many entries a page has: of one user's, and of each shard of an index.
const (
	userPage  = 256
	shardPage = 16
)

// Find implements store.Registry. Options.Timeout bounds each page.
func (s *Store) Find(ctx context.Context, q store.Query) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		err := store.CheckQuery(q)
		if err == nil {
			err = s.find(ctx, q, func(e store.Entry) bool { return yield(e, nil) })
		}
		if err != nil {
			yield(store.Entry{}, wrap("find", err))
		}
	}
}

// find calls found with what matches q until that returns false.
func (s *Store) find(ctx context.Context, q store.Query, found func(store.Entry) bool) error {
	switch {
	case q.User != "":
		return s.findUser(ctx, q, found)
	case q.ID != "":
		return s.findID(ctx, q, found)
	case q.SID != "":
		return s.findListed(ctx, q, []string{s.sidKey(q.Tenant, q.SID)}, found)
	default:
		keys := make([]string, tenantShards)
		for i := range keys {
			keys[i] = s.tenantKey(q.Tenant, strconv.Itoa(i))
		}
		return s.findListed(ctx, q, keys, found)
	}
}

// doPage is do within Options.Timeout.
func (s *Store) doPage(ctx context.Context, calls ...call) []rueidis.RedisResult {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return s.do(ctx, calls...)
}

func (s *Store) findUser(ctx context.Context, q store.Query, found func(store.Entry) bool) error {
	for cursor := ""; cursor != "0"; {
		if cursor == "" {
			cursor = "0"
		}
		page, err := s.doPage(ctx, call{script: scanScript, key: s.userKey(q.Tenant, q.User), args: []string{
			cursor, strconv.Itoa(userPage),
		}})[0].ToArray()
		if err != nil {
			return err
		}
		now, err := serverTime(page[0])
		if err != nil {
			return err
		}
		if cursor, err = page[1].ToString(); err != nil {
			return err
		}
		pairs, err := page[2].AsStrSlice()
		if err != nil {
			return err
		}
		for i := 0; i+1 < len(pairs); i += 2 {
			e, err := unpack(pairs[i+1])
			if err != nil {
				return err
			}
			e.Tenant, e.User, e.ID = q.Tenant, q.User, pairs[i]
			if e.Expires.After(now) && !found(e) {
				return nil
			}
		}
	}
	return nil
}

func (s *Store) findID(ctx context.Context, q store.Query, found func(store.Entry) bool) error {
	user, err := s.doPage(ctx, call{command: "GET", key: s.idKey(q.Tenant, q.ID)})[0].ToString()
	if rueidis.IsRedisNil(err) {
		return nil
	}
	if err != nil {
		return err
	}
	entries, err := s.read(ctx, q.Tenant, []string{user + ":" + q.ID})
	for _, e := range entries {
		if !found(e) {
			break
		}
	}
	return err
}

// findListed pages through indexes, all of them at a time, and verifies what they list.
func (s *Store) findListed(ctx context.Context, q store.Query, keys []string, found func(store.Entry) bool) error {
	from := make([]string, len(keys))
	for len(keys) > 0 {
		calls := make([]call, len(keys))
		for i, key := range keys {
			calls[i] = call{script: pageScript, key: key, args: []string{from[i], strconv.Itoa(shardPage)}}
		}
		var members, moreKeys, moreFrom []string
		for i, r := range s.doPage(ctx, calls...) {
			page, err := r.AsStrSlice()
			if err != nil {
				return err
			}
			members = append(members, page[1:]...)
			if page[0] != "" {
				moreKeys, moreFrom = append(moreKeys, keys[i]), append(moreFrom, page[0])
			}
		}
		keys, from = moreKeys, moreFrom

		entries, err := s.read(ctx, q.Tenant, members)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if (q.SID == "" || e.SID == q.SID) && !found(e) {
				return nil
			}
		}
	}
	return nil
}

// read returns the entries that members of an index name, as far as they are there and
// have not expired.
func (s *Store) read(ctx context.Context, tenant string, members []string) ([]store.Entry, error) {
	var calls []call
	var users []string
	at := make(map[string]int) // of a user's call
	for _, member := range members {
		user, id, ok := strings.Cut(member, ":")
		if !ok {
			return nil, errForeign
		}
		i, ok := at[user]
		if !ok {
			i = len(calls)
			at[user] = i
			calls = append(calls, call{script: readScript, key: s.userKey(tenant, user)})
			users = append(users, user)
		}
		calls[i].args = append(calls[i].args, id)
	}
	var found []store.Entry
	for i, r := range s.doPage(ctx, calls...) {
		answer, err := r.ToArray()
		if err != nil {
			return nil, err
		}
		now, err := serverTime(answer[0])
		if err != nil {
			return nil, err
		}
		for j, m := range answer[1:] {
			if m.IsNil() {
				continue
			}
			packed, err := m.ToString()
			if err != nil {
				return nil, err
			}
			e, err := unpack(packed)
			if err != nil {
				return nil, err
			}
			e.Tenant, e.User, e.ID = tenant, users[i], calls[i].args[j]
			if e.Expires.After(now) {
				found = append(found, e)
			}
		}
	}
	return found, nil
}

func serverTime(m rueidis.RedisMessage) (time.Time, error) {
	n, err := m.AsInt64()
	return time.UnixMilli(n), err
}
