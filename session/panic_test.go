package session

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// What one session makes panic keeps nothing back from the others, and is done once it can be:
// it would else stop one node after the other.
func TestUpkeepPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		r := newHearing(t, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&out, nil)) })
		feed := muteFeed{make(chan store.Feed, 1)}
		r.Feed = feed
		value := r.signIn("alice")
		handle, _, _ := strings.Cut(value, ".")
		panics := func(_ context.Context, op, key string) error {
			if op == "delete" && key == handle {
				panic(errors.New("a secret"))
			}
			return nil
		}
		rec, _ := r.record(value)
		live := r.wantUser("alice", value)
		others := []string{r.signIn("bob"), r.signIn("carol")}

		// What is reaped.
		for e, err := range r.Find(t.Context(), Query{}) {
			if err == nil && e.Subject != "carol" {
				_, err = r.memory.End(t.Context(), e.listed, string(coatcheck.ReasonRevoked))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		r.probe.forget(panics)
		r.run(t)
		told := <-feed.heard
		time.Sleep(store.EndingPatience + 2*upkeepEvery)
		synctest.Wait()
		r.wantKept(value, others[1])
		wantPanics(t, out.String(), "panic while a session was reaped", "reap.func", 1)
		r.probe.forget(nil)
		time.Sleep(store.ClaimLife + 2*upkeepEvery)
		r.wantKept(others[1])

		// What is left, and what is made again.
		if err := r.memory.Create(t.Context(), handle, rec.Value, idle); err != nil {
			t.Fatal(err)
		}
		r.probe.forget(panics)
		r.upkeep.leave(r.listing(live.Session, live.handle, live.verifier), coatcheck.ReasonRevoked)
		time.Sleep(2 * upkeepEvery)
		told.Reset()
		time.Sleep(2 * upkeepEvery)
		synctest.Wait()
		for _, what := range []string{"ended", "ended again"} {
			if message := "panic while a session was " + what + `"`; !strings.Contains(out.String(), message) {
				t.Errorf("nothing is logged of %s", message)
			}
		}
		r.probe.forget(nil)
		time.Sleep(2 * upkeepEvery)
		r.wantKept(others[1])
	})
}

// A provider that panics costs the token of one session, and not the node.
func TestRevocationPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := &panickyRevoker{}
		r, _, stop := newRevokingRig(t, func(o *Options) { o.Provider, o.Logger = p, slog.New(slog.NewTextHandler(&out, nil)) })
		for _, sub := range []string{"alice", "bob"} {
			value := r.signIn(sub)
			if err := r.End(t.Context(), http.Header{}, carrying(value), r.wantUser(sub, value), coatcheck.ReasonSignedOut); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		stop()
		if diff := cmp.Diff([]string{"refresh_token refresh token of bob"}, p.take()); diff != "" {
			t.Errorf("revoked (-want +got):\n%s", diff)
		}
		wantPanics(t, out.String(), "panic while a token was revoked", "panickyRevoker", revokeTries)
	})
}

type panickyRevoker struct{ revoker }

func (p *panickyRevoker) Revoke(ctx context.Context, token coatcheck.Secret, kind coatcheck.TokenKind) error {
	if strings.HasSuffix(token.Reveal(), "alice") {
		panic(errors.New("a secret"))
	}
	return p.revoker.Revoke(ctx, token, kind)
}

// A store that panics while a session in use is sealed anew: the request knows nothing of it.
func TestResealPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		r := newHearing(t, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&out, nil)) })
		r.run(t)
		value := r.signIn("alice")
		rotated, err := r.Ring.Rotated(time.Now())
		if err == nil {
			err = r.Ring.Replace(rotated)
		}
		if err != nil {
			t.Fatal(err)
		}
		r.Ring.Promote(time.Now(), func(string) bool { return true })
		r.probe.forget(func(_ context.Context, op, _ string) error {
			if op == "replace" {
				panic(errors.New("a secret"))
			}
			return nil
		})
		time.Sleep(time.Minute)
		r.wantUser("alice", value)
		synctest.Wait()
		wantPanics(t, out.String(), "panic while a session was sealed anew", "TestResealPanics", 1)
		r.wantUser("alice", value)
	})
}

// A store that panics tells nothing about the session of a stream, which is looked at again.
func TestStreamPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		r, told := newSilent(t, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&out, nil)) })
		live := r.wantUser("alice", r.signIn("alice"))
		var stream ear
		defer live.Watch(stream.ended)()
		stream.wantNothing(t, "while the session lives")
		if err := r.memory.Delete(t.Context(), live.handle); err != nil {
			t.Fatal(err)
		}
		r.probe.forget(func(context.Context, string, string) error { panic(errors.New("a secret")) })
		told.Changed(live.handle)
		stream.wantNothing(t, "while nobody knows")
		r.probe.forget(nil)
		time.Sleep(checkAgain)
		stream.want(t, "when it is known", ErrInvalid)
		wantPanics(t, out.String(), "panic while the session of a stream was read", "TestStreamPanics", 1)
	})
}
