package main

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// A target is a server under a load, whose processor time per request is measured.
type target struct {
	name    string
	against *target // what it is compared with; nil for one that others are compared with
	process *process
	store   *process // a store's server, whose time is told apart; or nil
	address string
	load    *load
	ahead   *ahead // nil where nothing is being refreshed
	result  series
}

// browserHead is in every request, so that headers cost what they cost in reality.
const browserHead = "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n" +
	"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n" +
	"Accept-Language: en-US,en;q=0.5\r\n" +
	"Accept-Encoding: gzip, deflate\r\n"

// pageLoad asks for a page of the app with each of the cookies in turn.
func pageLoad(address string, cookies []string) *load {
	l := &load{status: http.StatusOK, body: bodySize}
	for _, c := range cookies {
		l.requests = append(l.requests, []byte("GET / HTTP/1.1\r\nHost: "+address+"\r\n"+browserHead+"Cookie: "+c+"\r\n\r\n"))
	}
	return l
}

// authLoad asks, as nginx would, whether a page may be served.
func authLoad(address string, cookies []string) *load {
	l := &load{status: http.StatusAccepted}
	for _, c := range cookies {
		l.requests = append(l.requests, []byte("GET /oauth2/auth HTTP/1.1\r\nHost: "+address+"\r\n"+
			"X-Forwarded-Method: GET\r\nX-Forwarded-Host: "+address+"\r\nX-Forwarded-Uri: /\r\n"+
			browserHead+"Cookie: "+c+"\r\n\r\n"))
	}
	return l
}

// measure does everything: start-up and memory first, on nodes of their own, then the
// processor times, then memory under load.
func (l *lab) measure(ctx context.Context) (*result, error) {
	r := l.newResult(ctx)
	addresses := make([]string, 5)
	for i := range addresses {
		var err error
		if addresses[i], err = freePort(); err != nil {
			return nil, err
		}
	}
	if err := l.startApp(ctx); err != nil {
		return nil, err
	}
	redisServer, err := l.startRedis(ctx)
	if err != nil {
		return nil, err
	}
	if l.issuer, err = l.startProvider(ctx, 0, addresses[:4]...); err != nil {
		return nil, err
	}
	if !l.hot {
		if err := l.measureStarts(ctx, r); err != nil {
			return nil, err
		}
	}

	bare, bareAddress, err := l.role(ctx, roleBare, l.app)
	if err != nil {
		return nil, err
	}
	empty, emptyAddress, err := l.role(ctx, roleEmpty)
	if err != nil {
		return nil, err
	}
	onSQLite, sqliteCookies, err := l.startSignedIn(ctx, nodeOptions{name: "sqlite", store: sqlite, address: addresses[0]}, l.Sessions)
	if err != nil {
		return nil, err
	}
	onRedis, redisCookies, err := l.startSignedIn(ctx, nodeOptions{name: "redis", store: redis, address: addresses[1]}, l.Sessions)
	if err != nil {
		return nil, err
	}
	silent, silentCookies, err := l.startSignedIn(ctx, nodeOptions{name: "silent", store: sqlite, address: addresses[2], silent: true}, 1)
	if err != nil {
		return nil, err
	}

	barePages := &target{
		name: "bare ReverseProxy", process: bare, address: bareAddress,
		load: pageLoad(bareAddress, sqliteCookies),
	}
	emptyAnswers := &target{
		name: "empty handler", process: empty, address: emptyAddress,
		load: authLoad(emptyAddress, sqliteCookies),
	}
	crowded, crowdedCookies, err := l.startSignedIn(ctx, nodeOptions{name: "crowded", store: redis, address: addresses[3]}, l.AtRandom)
	if err != nil {
		return nil, err
	}
	refreshing, err := l.startRefreshing(ctx, addresses[4], redisServer)
	if err != nil {
		return nil, err
	}
	many := fmt.Sprintf(", %d sessions", l.Sessions)
	refreshing.name, refreshing.against = redis+many+", tokens under way", barePages
	atRandom := pageLoad(crowded.address, crowdedCookies)
	atRandom.random = true
	targets := []*target{
		barePages,
		{name: sqlite + ", 1 session", against: barePages, process: onSQLite.process, address: onSQLite.address, load: pageLoad(onSQLite.address, sqliteCookies[:1])},
		{name: sqlite + many, against: barePages, process: onSQLite.process, address: onSQLite.address, load: pageLoad(onSQLite.address, sqliteCookies)},
		{name: redis + ", 1 session", against: barePages, process: onRedis.process, store: redisServer, address: onRedis.address, load: pageLoad(onRedis.address, redisCookies[:1])},
		{name: redis + many, against: barePages, process: onRedis.process, store: redisServer, address: onRedis.address, load: pageLoad(onRedis.address, redisCookies)},
		refreshing,
		{name: redis + fmt.Sprintf(", %d sessions at random", l.AtRandom), against: barePages, process: crowded.process, store: redisServer, address: crowded.address, load: atRandom},
		{name: sqlite + ", 1 session, access log off", against: barePages, process: silent.process, address: silent.address, load: pageLoad(silent.address, silentCookies)},
		emptyAnswers,
		{name: "/oauth2/auth, " + sqlite + many, against: emptyAnswers, process: onSQLite.process, address: onSQLite.address, load: authLoad(onSQLite.address, sqliteCookies)},
		{name: "/oauth2/auth, " + redis + many, against: emptyAnswers, process: onRedis.process, store: redisServer, address: onRedis.address, load: authLoad(onRedis.address, redisCookies)},
	}
	if l.hot {
		targets = []*target{barePages, targets[3], targets[4], refreshing}
	}
	for i := range l.Runs {
		l.say("run %d of %d", i+1, l.Runs)
		for j := range targets {
			// Each run begins with another one, so that nobody always follows the same.
			t := targets[(i+j)%len(targets)]
			if err := l.measureTarget(ctx, t); err != nil {
				return nil, fmt.Errorf("%s: %w", t.name, err)
			}
		}
	}
	for _, t := range targets {
		r.add(t)
	}

	if l.hot {
		return r, nil
	}
	l.say("memory under load")
	for _, t := range []*target{barePages, targets[2], targets[4]} {
		peak, err := l.measureCrowd(ctx, t)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.name, err)
		}
		r.Memory = append(r.Memory, memory{Name: t.name, Open: l.Crowd, Bytes: peak})
	}
	r.Commands = l.commands
	return r, nil
}

// startRefreshing starts a node for sessions whose tokens are being refreshed.
func (l *lab) startRefreshing(ctx context.Context, address string, redisServer *process) (*target, error) {
	life := time.Duration(l.AccessLife) * time.Second
	issuer, err := l.startProvider(ctx, life, address)
	if err != nil {
		return nil, err
	}
	first := time.Now()
	node, cookies, err := l.startSignedIn(ctx, nodeOptions{name: "refreshing", store: redis, address: address, issuer: issuer}, l.Sessions)
	if err != nil {
		return nil, err
	}
	return &target{
		process: node.process, store: redisServer, address: address, load: pageLoad(address, cookies),
		ahead: &ahead{
			issuer: issuer, life: life, load: pageLoad(address, cookies), address: address,
			first: first, last: time.Now(), progress: l.say,
		},
	}, nil
}

// startSignedIn starts a node and makes n sessions there.
func (l *lab) startSignedIn(ctx context.Context, o nodeOptions, n int) (*node, []string, error) {
	node, _, err := l.startNode(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	l.say("%s: signing in %d times", o.name, n)
	cookies := make([]string, n)
	// A node serves before it has found its provider, so the first sign-in may fail.
	if err := node.await(ctx, func() error {
		cookies[0], err = signIn(ctx, o.address)
		return err
	}); err != nil {
		return nil, nil, err
	}
	for i := 1; i < n; i++ {
		if cookies[i], err = signIn(ctx, o.address); err != nil {
			return nil, nil, err
		}
	}
	return node, cookies, nil
}

// measureTarget adds one run to a target's result. Connections are opened and warmed
// up before; what closing them costs is not counted.
func (l *lab) measureTarget(ctx context.Context, t *target) error {
	if t.ahead != nil {
		if err := t.ahead.begin(ctx); err != nil {
			return err
		}
	}
	defer t.load.close()
	if err := t.load.open(ctx, t.address, l.Connections); err != nil {
		return err
	}
	random := t.load.random
	t.load.random = false // warming up reaches every session
	if err := t.load.send(ctx, max(l.Requests/10, len(t.load.requests))); err != nil {
		return err
	}
	t.load.random = random
	if t.ahead != nil {
		if err := t.ahead.settle(ctx); err != nil {
			return err
		}
	}
	idle, err := l.idleCommands(ctx)
	if err != nil {
		return err
	}
	commandsBefore, err := l.redisCommands(ctx)
	if err != nil {
		return err
	}
	before, storeBefore, err := t.cpu()
	if err != nil {
		return err
	}
	started := time.Now()
	if err := t.load.send(ctx, l.Requests); err != nil {
		return err
	}
	took := time.Since(started)
	after, storeAfter, err := t.cpu()
	if err != nil {
		return err
	}
	perRequest := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(l.Requests) }
	t.result.CPU = append(t.result.CPU, perRequest(after-before))
	t.result.Rate = append(t.result.Rate, float64(l.Requests)/took.Seconds())
	if t.store != nil {
		commands, err := l.redisCommands(ctx)
		if err != nil {
			return err
		}
		t.result.StoreCPU = append(t.result.StoreCPU, perRequest(storeAfter-storeBefore))
		more := float64(commands-commandsBefore) - idle*took.Seconds()
		t.result.StoreCommands = append(t.result.StoreCommands, max(more, 0)/float64(l.Requests))
	}
	if t.ahead != nil {
		if err := t.ahead.end(ctx); err != nil {
			return err
		}
		refreshed, _, err := t.cpu()
		if err != nil {
			return err
		}
		t.result.RefreshCPU = append(t.result.RefreshCPU, float64((refreshed-after).Nanoseconds())/1e3/float64(len(t.load.requests)))
	}
	return nil
}

// cpu is the processor time of the target's process and of its store's server.
func (t *target) cpu() (own, store time.Duration, err error) {
	if own, err = t.process.cpu(); err != nil || t.store == nil {
		return own, 0, err
	}
	store, err = t.store.cpu()
	return own, store, err
}

// measureStarts measures start-up times, and memory before the first request.
func (l *lab) measureStarts(ctx context.Context, r *result) error {
	for _, store := range []string{sqlite, redis} {
		l.say("start-up, %s", store)
		start := startUp{Name: store}
		for i := range l.Starts {
			address, err := freePort()
			if err != nil {
				return err
			}
			n, took, err := l.startNode(ctx, nodeOptions{name: fmt.Sprintf("start-%s-%d", store, i), store: store, address: address})
			if err != nil {
				return err
			}
			start.Millis = append(start.Millis, float64(took.Microseconds())/1e3)
			if i == l.Starts-1 {
				rest, err := n.settled(ctx)
				if err != nil {
					return err
				}
				r.Memory = append(r.Memory, memory{Name: store + ", at rest", Bytes: rest})
			}
			n.stop()
		}
		start.Spread = spreadOf(start.Millis)
		r.Starts = append(r.Starts, start)
	}
	return nil
}

// settled waits until the process's memory has not changed for a second, and returns
// it.
func (p *process) settled(ctx context.Context) (int64, error) {
	last, since := int64(-1), time.Now()
	for {
		now, err := p.resident()
		if err != nil {
			return 0, err
		}
		if now != last {
			last, since = now, time.Now()
		} else if time.Since(since) > time.Second {
			return now, nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return 0, err
		}
	}
}

// measureCrowd returns the most memory that a target had in RAM while it answered
// over many connections.
func (l *lab) measureCrowd(ctx context.Context, t *target) (int64, error) {
	defer t.load.close()
	if err := t.load.open(ctx, t.address, l.Crowd); err != nil {
		return 0, err
	}
	sent := make(chan error, 1)
	go func() { sent <- t.load.send(ctx, l.Requests) }()
	var peak int64
	for {
		now, err := t.process.resident()
		if err != nil {
			return 0, err
		}
		peak = max(peak, now)
		select {
		case err := <-sent:
			return peak, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
