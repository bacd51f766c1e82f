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
			patience = 10 * time.Second
		}
		if up(patience) != step.up {
			t.Errorf("after %s: up = %t, want %t", step.name, !step.up, step.up)
		}
	}
}
