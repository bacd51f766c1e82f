package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// troubleFor returns how long TestSlowAndBrokenWire makes trouble. COATCHECK_TEST_TROUBLE,
// a duration, is for those who have time.
func troubleFor(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("COATCHECK_TEST_TROUBLE")
	if text == "" {
		return 10 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("COATCHECK_TEST_TROUBLE: %v", err)
	}
	return d
}

// everyRequestReads turns the near cache of node-b off.
func everyRequestReads(name string, o *nodeOptions) {
	if name == "node-b" {
		o.more += "cache: {size_bytes: 0}\n"
	}
}

// A-Z5: every answer of the store takes half a second, and its connections break off again
// and again, in the midst of what they carry. Whoever gets an answer gets their own (G8).
func TestSlowAndBrokenWire(t *testing.T) {
	redis := testenv.StartRedis(t, testenv.RedisOptions{})
	slow := testenv.StartProxy(t, redis.Addr())
	breaking := testenv.StartProxy(t, slow.Addr())
	c := startCluster(t, clusterOptions{store: proxiedStore(breaking, 2*time.Second), more: uses, each: everyRequestReads})
	guests := signInGuests(t, c.url, people)

	const latency, broken, every = 500 * time.Millisecond, 0.05, 200 * time.Millisecond
	var loads []*load
	for range 4 {
		loads = append(loads, startLoad(t, c.url, guests, http.StatusServiceUnavailable))
	}
	quiet := countGoroutines(c)
	connections := func() (n int) {
		info := redis.Must("INFO", "stats")
		text, err := info.ToString()
		if _, rest, found := strings.Cut(text, "total_connections_received:"); err == nil && found {
			_, err = fmt.Sscan(rest, &n)
		}
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := connections()
	slow.Latency(latency)
	began, trouble := time.Now(), troubleFor(t)
	anew := 0
	// On a busy machine little passes the wire, and less of it breaks.
	for time.Since(began) < trouble || anew < 3 && time.Since(began) < 3*trouble {
		breaking.Reset(broken) // the die is cast again, for each connection
		time.Sleep(every)
		breaking.Heal()
		anew = connections() - before
	}
	slow.Heal()
	over := time.Now()
	if anew < 3 {
		t.Errorf("%d connections were made anew, the wire was not broken", anew)
	} else {
		t.Logf("%d connections were made anew", anew)
	}
	for _, l := range loads {
		l.recovered(t, over)
		l.stop(t, "the wire to the store is slow and breaks")
	}
	checkServed(t, c.url, guests)
	quiet.awaitBack(t)
}

// A-Z6: ten thousand people leave while their session is being read, each at a moment of
// their own. Nobody who stays gets what was read for one who left.
func TestLeavingDuringRead(t *testing.T) {
	const (
		requests = 10_000
		crowd    = 64
		latency  = 10 * time.Millisecond
	)
	redis := testenv.StartRedis(t, testenv.RedisOptions{})
	wire := testenv.StartProxy(t, redis.Addr())
	c := startCluster(t, clusterOptions{store: proxiedStore(wire, patient), each: everyRequestReads})
	guests := signInGuests(t, c.url, people)
	n := c.nodes["node-b"]
	quiet := countGoroutines(c)
	wire.Latency(latency)

	transport := &http.Transport{MaxIdleConnsPerHost: crowd}
	defer transport.CloseIdleConnections()
	ask := func(ctx context.Context, g guest) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.url+"/whoami", nil)
		if err != nil {
			return err
		}
		req.Host = c.host
		req.Header.Set("Cookie", g.asCookie())
		resp, err := transport.RoundTrip(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		return g.isServed(&testenv.Page{Status: resp.StatusCode, URL: req.URL, Header: resp.Header, Body: string(body)})
	}
	var left, stayed atomic.Int64
	var all sync.WaitGroup
	for range crowd {
		all.Go(func() {
			for left.Load() < requests && !t.Failed() {
				ctx, leave := t.Context(), context.CancelFunc(func() {})
				if rand.IntN(8) > 0 {
					ctx, leave = context.WithTimeout(ctx, rand.N(latency*3/2))
				}
				err := ask(ctx, guests[rand.IntN(len(guests))])
				switch {
				case err == nil:
					stayed.Add(1)
				case ctx.Err() != nil && (errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "canceled")):
					left.Add(1)
				default:
					t.Error(err)
				}
				leave()
			}
		})
	}
	all.Wait()
	t.Logf("%d left before they had an answer, %d got their own", left.Load(), stayed.Load())
	wire.Heal()
	checkServed(t, c.url, guests)
	quiet.awaitBack(t)
	c.checkLogs(t, "panic")
}
