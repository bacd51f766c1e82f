package e2e

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A-S1, A-S2: a session ends when it was not used for its idle timeout, and at its
// absolute timeout whatever is done with it: at most idle/20 early, never late. The store
// decides: the cookie is sent on and on, as no browser would.
func TestLifetimes(t *testing.T) {
	t.Parallel() // it waits, mostly
	const idle, absolute = 4 * time.Second, 12 * time.Second
	lifetimes := fmt.Sprintf("session: {idle_timeout: %s, absolute_timeout: %s}\n", idle, absolute)
	for _, driver := range []string{"sqlite", "redis"} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel() // it waits, most of the time
			port := testenv.FreePort(t)
			o := nodeOptions{
				port:     port,
				client:   startDevProvider(t, "http://"+testenv.Loopback(port)),
				upstream: startApp(t, "app"),
				more:     lifetimes,
			}
			if driver == "redis" {
				o.store = redisStore(t, testenv.StartRedis(t, testenv.RedisOptions{}), patient, "")
				o.keys = newKeys(t)
			}
			n := startNode(t, o)
			n.awaitSignIn()

			// Each person comes back after a time of their own; carol never stops.
			var all sync.WaitGroup
			all.Go(func() { stay(t, n, "carol", idle, absolute) })
			for _, gap := range []time.Duration{idle / 2, idle * 3 / 4, idle + 10*time.Millisecond, idle * 3 / 2} {
				all.Go(func() { comeBack(t, n, "alice", gap, idle) })
			}
			all.Wait()
		})
	}
}

// A span is when a request was under way.
type span struct{ sent, answered time.Time }

// use asks as a person whose session may be over, and tells whether it is.
func use(t *testing.T, s *sender, n *node, g guest) (at span, live bool) {
	at.sent = time.Now()
	page, err := s.send(request{url: n.url + "/whoami", cookie: g.asCookie(), header: asScript})
	at.answered = time.Now()
	switch {
	case err != nil:
		t.Error(err)
	case page.Status == http.StatusUnauthorized:
	default:
		live = true
		if err := g.isServed(page); err != nil {
			t.Error(err)
		}
	}
	return at, live
}

// arrive signs somebody in, and says when.
func arrive(t *testing.T, n *node, user string) (guest, span) {
	at := span{sent: time.Now()}
	g, err := newGuest(t, testenv.NewBrowser(t), n.url, user)
	if err != nil {
		t.Error(err)
	}
	at.answered = time.Now()
	return g, at
}

// stay uses a session until it ends. A machine that stalls may let the idle timeout end
// it, so what must be is derived from what was measured.
func stay(t *testing.T, n *node, user string, idle, absolute time.Duration) {
	s := newSender(t)
	g, began := arrive(t, n, user)
	last := began
	for uses := 0; ; uses++ {
		time.Sleep(absolute / 30)
		at, live := use(t, s, n, g)
		if !live {
			age := at.answered.Sub(began.sent)
			if age < absolute-idle/20 && at.answered.Sub(last.sent) < idle-idle/20 {
				t.Errorf("the session of %s, in use, ended at the age of %v; the absolute timeout is %v", user, age, absolute)
			}
			t.Logf("%d uses, the session ended at the age of %v", uses, age.Round(time.Millisecond))
			return
		}
		if age := at.sent.Sub(began.answered); age > absolute {
			t.Errorf("%s is served %v after the sign-in, the absolute timeout is %v", user, age, absolute)
			return
		}
		last = at
	}
}

// comeBack uses a session, waits, and uses it again.
func comeBack(t *testing.T, n *node, user string, gap, idle time.Duration) {
	s := newSender(t)
	g, last := arrive(t, n, user)
	time.Sleep(gap)
	at, live := use(t, s, n, g)
	switch least, most := at.sent.Sub(last.answered), at.answered.Sub(last.sent); {
	case live && least > idle:
		t.Errorf("served after %v without a use, the idle timeout is %v", least, idle)
	case !live && most < idle-idle/20:
		t.Errorf("ended after %v without a use, the idle timeout is %v", most, idle)
	}
}
