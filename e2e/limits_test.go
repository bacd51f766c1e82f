package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coatcheck/coatcheck/internal/testenv"
)

// A-S4: fifty sign-ins of one person at once, over three nodes, with a limit of two. After
// each one that is acknowledged, no more than two of all sessions can be used.
func TestParallelSignIns(t *testing.T) {
	t.Parallel() // it waits, mostly
	for _, onLimit := range []string{"deny", "evict_oldest", "evict_idle"} {
		t.Run(onLimit, func(t *testing.T) {
			// What a near cache adds, at most its lease, is looked at elsewhere: here every
			// request asks the store.
			c := startLimited(t, "{per_user: 2, on_limit: "+onLimit+"}", "cache: {size_bytes: 0}\n")
			testParallelSignIns(t, c, onLimit == "deny")
		})
	}
}

func testParallelSignIns(t *testing.T, c *cluster, deny bool) {
	const signIns, limit = 50, 2
	s := newSender(t)
	s.client.Transport.(*http.Transport).MaxIdleConnsPerHost = signIns
	b := testenv.NewBrowser(t)
	first, err := newGuest(t, b, c.url, "alice")
	if err != nil {
		t.Fatal(err)
	}
	// All of them are brought to where the provider sends the browser back. None carries
	// the session of the first.
	var callbacks []request
	for range signIns {
		callback := pendingCallback(t, b, c.url)
		pending := slices.DeleteFunc(cookiesOf(b, c.url), func(c *http.Cookie) bool { return c.Name == sessionCookie })
		callbacks = append(callbacks, request{url: callback, cookie: asHeader(pending), header: asNavigation})
	}

	tickets := &ticketBook{tickets: []guest{first}, dead: map[string]bool{}}
	began := time.Now()
	var all errgroup.Group
	for _, callback := range callbacks {
		all.Go(func() error {
			page, err := s.send(callback)
			switch {
			case err != nil:
				return err
			case page.Status == http.StatusForbidden && deny:
				if !strings.Contains(page.Body, "too many devices") || len(page.Header.Values("Set-Cookie")) != 0 && sets(page, sessionCookie) {
					return fmt.Errorf("a denied sign-in: %v %s", page.Header, firstLine(page.Body))
				}
				return nil
			case page.Status != http.StatusSeeOther:
				return fmt.Errorf("a sign-in: %d %s", page.Status, firstLine(page.Body))
			}
			for _, line := range page.Header.Values("Set-Cookie") {
				if set, err := http.ParseSetCookie(line); err == nil && set.Name == sessionCookie {
					tickets.add(guest{"alice", set.Value})
				}
			}
			usable, err := tickets.usable(s, c.url)
			if err == nil && len(usable) > limit {
				err = fmt.Errorf("%d sessions can be used", len(usable))
			}
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("%d sign-ins in %v", signIns, time.Since(began).Round(time.Millisecond))

	acknowledged := len(tickets.tickets)
	if want := map[bool]int{true: limit, false: 1 + signIns}[deny]; acknowledged != want {
		t.Errorf("%d sign-ins were acknowledged, want %d", acknowledged, want)
	}
	// Every node agrees about all of them, the dead ones too.
	clear(tickets.dead)
	for _, name := range c.names() {
		n := c.nodes[name]
		var alive int
		for _, g := range tickets.tickets {
			page := s.mustSend(t, c.at(n, request{url: "/whoami", cookie: g.asCookie(), header: asScript}))
			if page.Status == http.StatusOK {
				alive++
			} else if page.Status != http.StatusUnauthorized {
				t.Errorf("%s: %d %s", name, page.Status, firstLine(page.Body))
			}
		}
		if alive != limit {
			t.Errorf("at %s %d of %d can be used in the end, want %d", name, alive, acknowledged, limit)
		}
	}
}

// A ticketBook has what was handed out to one person.
type ticketBook struct {
	mu      sync.Mutex
	tickets []guest
	dead    map[string]bool
}

func (b *ticketBook) add(g guest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tickets = append(b.tickets, g)
}

// usable returns those that could be used at the moment of the call: of what was handed out
// before it, whatever is served after it. What is dead stays so, which is looked at in the
// end.
func (b *ticketBook) usable(s *sender, site string) (list []guest, err error) {
	b.mu.Lock()
	candidates := slices.DeleteFunc(slices.Clone(b.tickets), func(g guest) bool { return b.dead[g.cookie] })
	b.mu.Unlock()
	for _, g := range candidates {
		page, err := s.send(request{url: site + "/whoami", cookie: g.asCookie(), header: asScript})
		if err != nil {
			return nil, err
		}
		if page.Status == http.StatusUnauthorized {
			b.mu.Lock()
			b.dead[g.cookie] = true
			b.mu.Unlock()
			continue
		}
		if err := g.isServed(page); err != nil {
			return nil, err
		}
		list = append(list, g)
	}
	return list, nil
}
