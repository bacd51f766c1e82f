package session

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/seal"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/memory"
)

// A probe stands before a store. It writes down every call, and a hook may answer in
// the store's place.
type probe struct {
	store.Store
	mu    sync.Mutex
	calls []string // as in "get"
	keys  []string
	made  []string // the keys of all records that may have been created, ever
	// hook, unless it is nil, runs before each call; its error is the call's.
	hook func(ctx context.Context, op, key string) error
}

func (p *probe) enter(ctx context.Context, op, key string) error {
	p.mu.Lock()
	p.calls, p.keys = append(p.calls, op), append(p.keys, key)
	if op == "create" {
		p.made = append(p.made, key)
	}
	hook := p.hook
	p.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(ctx, op, key)
}

func (p *probe) Get(ctx context.Context, key string) (store.Record, error) {
	if err := p.enter(ctx, "get", key); err != nil {
		return store.Record{}, err
	}
	return p.Store.Get(ctx, key)
}

func (p *probe) Create(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if err := p.enter(ctx, "create", key); err != nil {
		return err
	}
	return p.Store.Create(ctx, key, value, ttl)
}

func (p *probe) Replace(ctx context.Context, key string, revision uint64, value []byte, ttl time.Duration) error {
	if err := p.enter(ctx, "replace", key); err != nil {
		return err
	}
	return p.Store.Replace(ctx, key, revision, value, ttl)
}

func (p *probe) Touch(ctx context.Context, key string, ttl time.Duration) error {
	if err := p.enter(ctx, "touch", key); err != nil {
		return err
	}
	return p.Store.Touch(ctx, key, ttl)
}

func (p *probe) Delete(ctx context.Context, key string) error {
	if err := p.enter(ctx, "delete", key); err != nil {
		return err
	}
	return p.Store.Delete(ctx, key)
}

// count returns the number of calls of op since the last forget.
func (p *probe) count(op string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, call := range p.calls {
		if call == op {
			n++
		}
	}
	return n
}

// forget forgets the calls so far and sets the hook for those to come.
func (p *probe) forget(hook func(ctx context.Context, op, key string) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls, p.keys, p.hook = nil, nil, hook
}

var errDown = errors.New("store: connection refused")

// failing returns a hook that fails the given operations.
func failing(ops ...string) func(context.Context, string, string) error {
	return func(_ context.Context, op, _ string) error {
		if slices.Contains(ops, op) {
			return errDown
		}
		return nil
	}
}

// A rig is a Manager over a memory store with a probe before it.
type rig struct {
	*Manager
	t      testing.TB
	probe  *probe
	memory *memory.Store
}

const (
	idle     = 30 * time.Minute
	absolute = 12 * time.Hour
	name     = "__Host-coatcheck" // of the session cookie
)

func newRig(t testing.TB, change ...func(*Options)) *rig {
	t.Helper()
	m := memory.New()
	t.Cleanup(func() { _ = m.Close() })
	o := Options{
		Store: m, Registry: m, Ring: seal.NewRing(), Jar: cookie.New("coatcheck", "", false), Tenant: "default",
		Idle: idle, Absolute: absolute,
	}
	for _, c := range change {
		c(&o)
	}
	p := &probe{Store: o.Store}
	o.Store = p
	return &rig{Manager: New(o), t: t, probe: p, memory: m}
}

// beside returns a rig on the same store, with another Manager.
func (r *rig) beside(change func(*Options)) *rig {
	o := r.Options
	change(&o)
	return &rig{Manager: New(o), t: r.t, probe: r.probe, memory: r.memory}
}

func user(sub string) *coatcheck.Session {
	return &coatcheck.Session{
		Provider: "corp", State: coatcheck.Authenticated,
		Identity: coatcheck.Identity{
			Issuer: "https://idp.example", Subject: sub, Email: sub + "@corp.example", EmailVerified: true,
			Name: "Name of " + sub, Groups: []string{"agent", "admins"},
		},
		Tokens: coatcheck.Tokens{Refresh: coatcheck.Secret("refresh token of " + sub)},
	}
}

// signIn begins a session, and returns the value of its cookie.
func (r *rig) signIn(sub string, carried ...string) string {
	r.t.Helper()
	h := http.Header{}
	live, err := r.Begin(r.t.Context(), h, carrying(carried...), user(sub), r.Now())
	if err != nil {
		r.t.Fatalf("Begin: %v", err)
	}
	if live == nil || live.Identity.Subject != sub {
		r.t.Fatalf("Begin returned %+v", live)
	}
	return r.cookieIn(h)
}

// cookieIn returns the value of the session cookie that h sets.
func (r *rig) cookieIn(h http.Header) string {
	r.t.Helper()
	lines := h["Set-Cookie"]
	if len(lines) != 1 {
		r.t.Fatalf("Set-Cookie: %q, want one line", lines)
	}
	c, err := http.ParseSetCookie(lines[0])
	if err != nil || c.Name != r.Jar.Session() || c.Value == "" {
		r.t.Fatalf("Set-Cookie: %q, %v", lines[0], err)
	}
	return c.Value
}

// carrying returns a request's header with the given session cookies.
func carrying(values ...string) http.Header {
	h := http.Header{}
	for _, v := range values {
		h.Add("Cookie", name+"="+v)
	}
	return h
}

func (r *rig) load(values ...string) (*Live, error) {
	return r.Load(r.t.Context(), carrying(values...))
}

// wantUser fails the test unless the cookies open the session of sub.
func (r *rig) wantUser(sub string, values ...string) *Live {
	r.t.Helper()
	live, err := r.load(values...)
	if err != nil || live == nil {
		r.t.Fatalf("Load = %v, %v; want the session of %s", live, err, sub)
	}
	if live.Identity.Subject != sub {
		r.t.Fatalf("Load opened the session of %q, want %q", live.Identity.Subject, sub)
	}
	return live
}

// wantInvalid fails the test unless the cookies are told to open nothing.
func (r *rig) wantInvalid(values ...string) {
	r.t.Helper()
	live, err := r.load(values...)
	if !errors.Is(err, ErrInvalid) || live != nil {
		r.t.Fatalf("Load = %v, %v; want ErrInvalid", live, err)
	}
}

// wantCode fails the test unless err has the code, is not ErrInvalid and shows nothing
// of the cookies.
func wantCode(t testing.TB, live *Live, err error, code coatcheck.Code, values ...string) {
	t.Helper()
	if err == nil || live != nil {
		t.Fatalf("%v, %v; want an error with code %s", live, err, code)
	}
	if errors.Is(err, ErrInvalid) {
		t.Fatalf("%v: a session that nobody knows of is called invalid", err)
	}
	if got := coatcheck.CodeOf(err); got != code {
		t.Fatalf("%v has code %s, want %s", err, got, code)
	}
	for _, v := range values {
		for part := range strings.SplitSeq(strings.TrimPrefix(v, name+"-"), ".") {
			if len(part) > 8 && strings.Contains(err.Error(), part) {
				t.Errorf("the error shows a part of the ticket: %v", err) // invariant 13
			}
		}
	}
}

// record returns what the store holds for a ticket, without leaving a trace.
func (r *rig) record(value string) (store.Record, bool) {
	r.t.Helper()
	handle, _, _ := strings.Cut(value, ".")
	rec, err := r.memory.Get(context.Background(), handle)
	if errors.Is(err, store.ErrNotFound) {
		return store.Record{}, false
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return rec, true
}

// kept returns the handles of the session records that are in the store.
func (r *rig) kept() (handles []string) {
	r.t.Helper()
	for _, key := range r.probe.made {
		if _, err := r.memory.Get(context.Background(), key); err == nil && strings.HasPrefix(key, name+"-") {
			handles = append(handles, key)
		}
	}
	slices.Sort(handles)
	return handles
}

// wantKept fails the test unless the sessions of these cookies, and no others, are in the
// store and in the registry (invariant 4).
func (r *rig) wantKept(values ...string) {
	r.t.Helper()
	want := []string{}
	for _, v := range values {
		handle, _, _ := strings.Cut(v, ".")
		want = append(want, handle)
	}
	slices.Sort(want)
	if got := r.kept(); !slices.Equal(got, want) {
		r.t.Errorf("the store keeps %v, want %v", got, want)
	}
	listed := []string{}
	for e, err := range r.memory.Find(context.Background(), store.Query{Tenant: r.tenantName()}) {
		if err != nil {
			r.t.Fatal(err)
		}
		listed = append(listed, e.Record)
	}
	slices.Sort(listed)
	if !slices.Equal(listed, want) {
		r.t.Errorf("the registry lists %v, want %v", listed, want)
	}
}

// put seals plain for a ticket and stores it in the place of what is there.
func (r *rig) put(value string, plain []byte) {
	r.t.Helper()
	t, err := parseTicket(r.Jar.Session(), value)
	if err != nil {
		r.t.Fatal(err)
	}
	sealed, err := r.Ring.SealRecord(r.place(t.handle), t.secret[:], plain, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	r.putSealed(t.handle, sealed)
}

func (r *rig) putSealed(handle string, sealed []byte) {
	r.t.Helper()
	ctx := context.Background()
	if err := r.memory.Delete(ctx, handle); err != nil {
		r.t.Fatal(err)
	}
	if err := r.memory.Create(ctx, handle, sealed, idle); err != nil {
		r.t.Fatal(err)
	}
}
