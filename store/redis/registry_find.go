package redis

import (
	"context"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck/store"
)

const (
	// How many entries a page has: of one user's, and of each shard of an index.
	userPage  = 256
	shardPage = 16
	// usersAtOnce is of how many users Entries reads a page at a time.
	usersAtOnce = 64
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

// Entries implements store.Lister. It walks over all keys of the database, as Keys does, and
// reads all users' hashes, which decide: what is in no index is found as well.
func (s *Store) Entries(ctx context.Context, tenant string) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		err := store.CheckQuery(store.Query{Tenant: tenant})
		if err == nil {
			err = s.entries(ctx, tenant, func(e store.Entry) bool { return yield(e, nil) })
		}
		if err != nil {
			yield(store.Entry{}, wrap("entries", err))
		}
	}
}

// entries calls found with all entries of a tenant until that returns false.
func (s *Store) entries(ctx context.Context, tenant string, found func(store.Entry) bool) error {
	prefix, more := s.userKey(tenant, ""), true
	return s.scan(ctx, prefix, func(names []string) (bool, error) {
		for i, name := range names {
			names[i] = strings.TrimPrefix(name, prefix)
		}
		for users := range slices.Chunk(names, usersAtOnce) {
			err := s.findUsers(ctx, tenant, users, func(e store.Entry) bool { more = found(e); return more })
			if err != nil || !more {
				return false, err
			}
		}
		return true, nil
	})
}

// find calls found with what matches q until that returns false.
func (s *Store) find(ctx context.Context, q store.Query, found func(store.Entry) bool) error {
	switch {
	case q.User != "":
		return s.findUsers(ctx, q.Tenant, []string{q.User}, found)
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

// findUsers pages through the hashes of users, all of them at a time.
func (s *Store) findUsers(ctx context.Context, tenant string, users []string, found func(store.Entry) bool) error {
	from := slices.Repeat([]string{"0"}, len(users))
	for len(users) > 0 {
		calls := make([]call, len(users))
		for i, user := range users {
			calls[i] = call{script: scanScript, key: s.userKey(tenant, user), args: []string{from[i], strconv.Itoa(userPage)}}
		}
		var moreUsers, moreFrom []string
		for i, r := range s.doPage(ctx, calls...) {
			page, err := r.ToArray()
			if err != nil {
				return err
			}
			now, err := serverTime(page[0])
			if err != nil {
				return err
			}
			cursor, err := page[1].ToString()
			if err != nil {
				return err
			}
			pairs, err := page[2].AsStrSlice()
			if err != nil {
				return err
			}
			for j := 0; j+1 < len(pairs); j += 2 {
				e, err := unpack(pairs[j+1])
				if err != nil {
					return err
				}
				e.Tenant, e.User, e.ID = tenant, users[i], pairs[j]
				if e.Expires.After(now) && !found(e) {
					return nil
				}
			}
			if cursor != "0" {
				moreUsers, moreFrom = append(moreUsers, users[i]), append(moreFrom, cursor)
			}
		}
		users, from = moreUsers, moreFrom
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
