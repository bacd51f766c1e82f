package audit

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck"
)

func TestEntry(t *testing.T) {
	e := event("e")
	e.Node, e.App, e.Limit, e.Time = "a", "shop", "per_user", time.Unix(1e9, 5).UTC()
	data, err := encode(e)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decode(data)
	if diff := cmp.Diff(e, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

// FuzzDecode: the journal lies in a store, which is not to be trusted. What is read as an
// event is one, and stays the same when it is told on.
func FuzzDecode(f *testing.F) {
	whole, err := encode(event("e"))
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		string(whole), `{"v":1,"event":{"id":"x","type":"y","new":1}}`, `{"v":2}`, `null`, "\xff",
		`{"v":1,"event":{"id":"\ud800","type":"y","time":"2026-01-02T03:04:05+23:59"}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := decode(data)
		if err != nil {
			if e != (coatcheck.Event{}) {
				t.Errorf("an error, and %+v", e)
			}
			return
		}
		again, err := encode(e)
		if err != nil {
			t.Fatalf("%+v can't be told on: %v", e, err)
		}
		back, err := decode(again)
		if diff := cmp.Diff(e, back); diff != "" || err != nil {
			// It may have grown over the bound by escaping.
			if len(again) <= len(data) {
				t.Errorf("%v (-first +again):\n%s", err, diff)
			}
		}
	})
}
