package testenv

import (
	"context"
	"testing"
	"time"
)

func TestRedisComesAndGoes(t *testing.T) {
	r := StartRedis(t, RedisOptions{Persist: true, Password: "of-the-test"})
	up := func(patience time.Duration) bool {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return r.ready(ctx) == nil
	}
	for _, step := range []struct {
		name string
		do   func()
		up   bool
	}{
		{"Pause", r.Pause, false},
		{"Resume", r.Resume, true},
		{"Kill", r.Kill, false},
		{"Restart", r.Restart, true},
		{"Stop", r.Stop, false},
		{"Restart", r.Restart, true},
	} {
		step.do()
		patience := 100 * time.Millisecond
		if step.up {
			patience = time.Minute
		}
		if up(patience) != step.up {
			t.Errorf("after %s: up = %t, want %t", step.name, !step.up, step.up)
		}
	}
}

func TestSentinelFailsOver(t *testing.T) {
	s := StartSentinel(t, SentinelOptions{})
	old := s.Primary()
	old.Must("SET", "k", "v")
	old.Must("WAIT", "1", "0")
	old.Kill()
	primary := s.WaitFailover(old)
	m := primary.Must("GET", "k")
	if v, _ := m.ToString(); v != "v" {
		t.Errorf("GET from the new primary: %q", v)
	}
}

func TestClusterFormsAndMoves(t *testing.T) {
	c := StartRedisCluster(t, ClusterOptions{Replicas: 1, Empty: 1})
	slot := c.Slot("k")
	from, to := c.Owner(slot), c.Nodes()[3]
	from.Must("SET", "k", "v")
	c.Migrate(slot, to)
	if c.Owner(slot) != to {
		t.Error("the slot has not moved")
	}
	m := to.Must("GET", "k")
	if v, _ := m.ToString(); v != "v" {
		t.Errorf("GET from the new owner: %q", v)
	}
	if next := c.Failover(c.Nodes()[0]); c.Owner(0) != next {
		t.Error("the replica does not serve")
	}
	dead := c.Nodes()[1]
	slot = dead.ownSlots()[0]
	dead.Kill()
	if c.Owner(slot) == dead {
		t.Error("a dead node serves")
	}
	c.WaitServing()
}

func TestRedisSpeaksTLS(t *testing.T) {
	certs := NewCertificates(t)
	r := StartRedis(t, RedisOptions{Certificates: certs})
	if err := r.Do("PING").Error(); err != nil {
		t.Error(err)
	}
}
