package session

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// A session that its registry has lost and that was listed again has begun when it began.
func TestBegunLongBeforeItWasListedAgain(t *testing.T) {
	for name, listAgain := range map[string]func(r *rig, cookie string, e store.Entry){
		"by a use": func(r *rig, cookie string, e store.Entry) {
			if err := r.memory.Remove(r.t.Context(), e); err != nil {
				r.t.Fatal(err)
			}
			time.Sleep(time.Minute)
			r.wantUser("alice", cookie)
		},
		"by whoever reaps it": func(r *rig, _ string, e store.Entry) {
			if again, err := r.relist(r.t.Context(), e); !again || err != nil {
				r.t.Fatal(again, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				cookie := r.mustBegin("alice", "")
				began := r.Now()
				time.Sleep(time.Minute)
				logout := Logout{Issuer: issuer, Subject: "alice", ID: "1", Expires: r.Now().Add(7 * time.Minute)}
				r.probe.forget(failing("delete"))
				if _, err := r.BackChannelLogout(t.Context(), logout); err == nil {
					t.Error("with the store down it is carried out")
				}
				r.probe.forget(nil)
				time.Sleep(10 * time.Second)
				listAgain(r, cookie, r.entry())
				if e := r.entry(); e.Ending != "" {
					t.Fatalf("it is not listed again, but %+v", e)
				} else if d, err := r.describe(e); err != nil || !d.Started.Equal(began.Truncate(time.Millisecond)) {
					t.Errorf("it is listed as begun at %v, %v; want %v", d.Started, err, began)
				}
				if _, err := r.BackChannelLogout(context.Background(), logout); err != nil {
					t.Error(err)
				}
				r.wantInvalid(cookie)
			})
		})
	}
}

// entry returns the only one that is listed.
func (r *rig) entry() (found store.Entry) {
	r.t.Helper()
	for e, err := range r.memory.Find(r.t.Context(), store.Query{Tenant: r.tenantName()}) {
		if err != nil || found.ID != "" {
			r.t.Fatalf("listed are %+v, %+v, %v", found, e, err)
		}
		found = e
	}
	return found
}
