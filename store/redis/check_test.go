package redis

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
)

// logged is what a Store wrote to its log.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// A server that ends idle connections before they are kept awake is not used, and the
// error says what to do. Once that is done, no restart is needed.
func TestIdleTimeout(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{Config: []string{"timeout 1"}})
	var log logged
	s := open(t, Options{URL: server.URL(), Logger: log.logger()})
	const fix = "CONFIG SET timeout 0"
	if err := s.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), fix) {
		t.Errorf("Ping: %v, want the fix", err)
	}
	if err := s.Create(t.Context(), "k", nil, time.Hour); err == nil || !strings.Contains(err.Error(), fix) {
		t.Errorf("Create: %v, want the fix", err)
	}
	if !strings.Contains(log.String(), fix) {
		t.Errorf("log: %s", log.String())
	}
	server.Must("CONFIG", "SET", "timeout", "0")
	waitUp(t, s)
}

// A connection that is kept awake often enough outlives the server's timeout.
func TestIdleConnection(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{Config: []string{"timeout 1"}})
	const timeout = 900 * time.Millisecond
	s := open(t, Options{URL: server.URL(), Timeout: timeout})
	for {
		waitUp(t, s)
		before, longest := s.answering.Load(), time.Duration(0)
		for end := time.Now().Add(4 * time.Second); time.Now().Before(end); { // the server looks once a second or so
			slept := time.Now()
			time.Sleep(10 * time.Millisecond)
			longest = max(longest, time.Since(slept))
		}
		err := s.Ping(t.Context())
		switch {
		case err == nil && s.answering.Load() == before:
			return
		case longest < timeout/9: // or else the machine, which stood still, kept nothing awake
			t.Fatalf("Ping: %v, on connection %d, was %d", err, s.answering.Load(), before)
		}
	}
}

// What a server answers in its own way to CLIENT TRACKING and to CONFIG GET is no reason
// to wait for it.
func TestOtherAnswers(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	proxy := startCutter(t, server.Addr(), "BCAST", "BCASX", "%1\r\n$7\r\ntimeout\r\n$1\r\n0\r\n", "%0\r\n")
	var log logged
	s := open(t, Options{URL: "redis://" + proxy.Addr().String(), Logger: log.logger()})
	if err := s.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"syntax error", "CONFIG GET"} {
		if strings.Count(log.String(), want) != 1 {
			t.Errorf("log: %s; want %s once", log.String(), want)
		}
	}
	if err := s.Watch(t.Context(), time.Second, store.Feed{}); !errors.Is(err, store.ErrNoFeed) {
		t.Errorf("Watch: %v", err)
	}
}

// A server that can't tell its settings for now is asked again.
func TestIdleTimeoutLater(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{Config: []string{"timeout 1"}})
	proxy := startCutter(t, server.Addr(), "%1\r\n$7\r\ntimeout\r\n$1\r\n1\r\n", "-BUSY Redis is busy running a script\r\n")
	s := open(t, Options{URL: "redis://" + proxy.Addr().String()})
	if err := s.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "BUSY") {
		t.Errorf("Ping: %v, want BUSY", err)
	}
	proxy.edits.Store(strings.NewReplacer())
	eventually(t, "the setting is seen", func() bool {
		err := s.Ping(t.Context())
		return err != nil && strings.Contains(err.Error(), "CONFIG SET timeout 0")
	})
}

func TestForbidden(t *testing.T) {
	const user = "user limited on >of-the-test ~* +@all "
	for _, tc := range []struct {
		name   string
		config string
		user   string
		feed   bool
		warns  []string
	}{
		{"nothing", "", "", true, nil},
		{"CONFIG, renamed", `rename-command CONFIG ""`, "", true, []string{"CONFIG GET"}},
		{"CONFIG, by ACL", user + "-config", "limited", true, []string{"CONFIG GET"}},
		{"CLIENT, renamed", `rename-command CLIENT ""`, "", false, []string{"CLIENT TRACKING"}},
		{"CLIENT TRACKING, by ACL", user + "-client|tracking", "limited", false, []string{"CLIENT TRACKING"}},
		{"both", user + "-client|tracking -config", "limited", false, []string{"CLIENT TRACKING", "CONFIG GET"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			opts := testenv.RedisOptions{}
			if tc.config != "" {
				opts.Config = []string{tc.config}
			}
			server := testenv.StartRedis(t, opts)
			var log logged
			o := Options{URL: server.URL(), Username: tc.user, Logger: log.logger()}
			if tc.user != "" {
				o.Password = password
			}
			s := open(t, o)
			if err := s.Create(t.Context(), "k", []byte("v"), time.Hour); err != nil {
				t.Errorf("Create: %v", err)
			}
			if r, err := s.Get(t.Context(), "k"); err != nil || string(r.Value) != "v" {
				t.Errorf("Get: %q, %v", r.Value, err)
			}
			if n := strings.Count(log.String(), "level=WARN"); n != len(tc.warns) {
				t.Errorf("log has %d warnings, want %d: %s", n, len(tc.warns), log.String())
			}
			for _, w := range tc.warns {
				if !strings.Contains(log.String(), w) {
					t.Errorf("log has no warning of %s: %s", w, log.String())
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err := s.Watch(ctx, 10*time.Millisecond, store.Feed{
				Changed: func(string) {}, Reset: func() {}, Current: func(time.Time) { cancel() },
			})
			if want := map[bool]error{true: context.Canceled, false: store.ErrNoFeed}[tc.feed]; !errors.Is(err, want) {
				t.Errorf("Watch: %v, want %v", err, want)
			}
		})
	}
}

// Only a server that will never track is used without.
func TestForbidsTracking(t *testing.T) {
	for said, want := range map[string]bool{
		"unknown command 'CLIENT', with args beginning with: 'TRACKING'": true,
		"unknown subcommand 'TRACKING'. Try CLIENT HELP.":                true,
		"Unknown subcommand or wrong number of arguments":                true,
		"NOPERM this user has no permissions":                            true,
		"syntax error":                                                   true,
		"DENIED by the provider":                                         true,
		"this server is too busy for that":                               true,
		"BUSY Redis is busy running a script":                            false,
		"LOADING Redis is loading the dataset in memory":                 false,
		"MASTERDOWN Link with MASTER is down":                            false,
		"CLUSTERDOWN The cluster is down":                                false,
		"NOAUTH Authentication required.":                                false,
	} {
		err := fmt.Errorf("%s: %v\n%w", said, []string{"CLIENT", "TRACKING", "ON", "PREFIX", "unknown"}, rueidis.ErrNoCache)
		if got := forbidsTracking(err); got != want {
			t.Errorf("%s: %t", said, got)
		}
	}
	if !forbidsTracking(rueidis.ErrNoCache) || forbidsTracking(errors.New("unknown host")) || forbidsTracking(nil) {
		t.Error("errors of another kind")
	}
}
