package redis

import (
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
)

// A-Z14: on a server that is out of memory nobody can sign in, and whoever is signed in
// stays so, can sign out and can be signed out.
func TestFullServer(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s := open(t, Options{URL: server.URL()})
	ctx := t.Context()
	entry := func(id string) store.Entry {
		return store.Entry{ID: id, Tenant: "acme", User: "alice", SID: "sid", Record: "r-" + id, Data: []byte("data")}
	}
	for _, id := range []string{"used", "ended", "expired"} {
		if err := s.Create(ctx, "r-"+id, []byte("value"), time.Hour); err != nil {
			t.Fatal(err)
		}
		ttl := time.Hour
		if id == "expired" {
			ttl = 50 * time.Millisecond
		}
		if _, err := s.Admit(ctx, entry(id), ttl, store.Limits{}, ""); err != nil {
			t.Fatal(err)
		}
	}
	server.Must("CONFIG", "SET", "maxmemory", "1")
	defer server.Must("CONFIG", "SET", "maxmemory", "0")

	if _, err := s.Admit(ctx, entry("new"), time.Hour, store.Limits{}, ""); err == nil {
		t.Error("a full server admits")
	}
	if err := s.Create(ctx, "r-new", nil, time.Hour); err == nil {
		t.Error("a full server takes a record")
	}
	for _, ttl := range []time.Duration{time.Hour, 24 * time.Hour} { // the indexes too
		if err := s.Renew(ctx, entry("used"), ttl); err != nil {
			t.Errorf("Renew for %v: %v", ttl, err)
		}
		if err := s.Touch(ctx, "r-used", ttl); err != nil {
			t.Errorf("Touch for %v: %v", ttl, err)
		}
	}
	marked, err := s.End(ctx, entry("ended"), "revoked")
	if err != nil {
		t.Fatalf("End: %v", err)
	}
	if err := s.Delete(ctx, "r-ended"); err != nil {
		t.Errorf("Delete: %v", err)
	}
	if err := s.Remove(ctx, marked); err != nil {
		t.Errorf("Remove: %v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		claimed, err := s.Reap(ctx, 10)
		if err != nil {
			t.Fatalf("Reap: %v", err)
		}
		if len(claimed) == 1 && claimed[0].ID == "expired" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("Reap: %v", claimed)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := s.Remove(ctx, entry("expired")); err != nil {
		t.Errorf("Remove: %v", err)
	}
	left := 0
	for e, err := range s.Find(ctx, store.Query{Tenant: "acme"}) {
		if err != nil || e.ID != "used" {
			t.Errorf("%s is listed, %v", e.ID, err)
		}
		left++
	}
	if left != 1 {
		t.Errorf("%d sessions are listed", left)
	}
}
