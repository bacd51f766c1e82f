package audit

import (
	"bytes"
	"log/slog"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/internal/testenv/golden"
)

// goldenEvent is what event-1.json holds: everything that an event may say.
func goldenEvent() coatcheck.Event {
	ref := coatcheck.MakeRef("__Host-coatcheck-000102030405060708090a0b0c0d0e0f")
	return coatcheck.Event{
		ID: coatcheck.MakeEventID(coatcheck.EventEnded, ref, 0), Type: coatcheck.EventEnded,
		Time: time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC), Node: "node-a",
		Tenant: "default", Issuer: "https://idp.example", Subject: "248289761001", Ref: ref, App: "shop.example",
		Reason: coatcheck.ReasonRevoked, Limit: "per_user",
	}
}

func TestGoldenEvent(t *testing.T) {
	got, err := decode(golden.Read(t, "event-1.json"))
	golden.Check(t, "event-1.json", goldenEvent(), got, err)
	data, err := encode(goldenEvent())
	golden.Written(t, "event-1.json", data, err)
}

// What a node of a later version says of an event is ignored; what it says in another
// version is left alone, and what comes after it is heard.
func TestLaterEvents(t *testing.T) {
	var log bytes.Buffer
	l := New(Options{Logger: slog.New(slog.NewTextHandler(&log, nil)), Node: "node-b"})
	var heard []coatcheck.Event
	l.Subscribe(func(e coatcheck.Event) { heard = append(heard, e) })
	whole := golden.Read(t, "event-1.json")
	for _, data := range [][]byte{
		bytes.Replace(whole, []byte(`"v":1`), []byte(`"v":2`), 1),
		[]byte(`{"v":2,"event":["of another form"]}`),
		bytes.Replace(whole, []byte(`"event":{`), []byte(`"more":[1],"event":{"device":{"name":"x"},`), 1),
	} {
		l.hear(t.Context(), data)
	}
	if len(heard) != 1 || heard[0] != goldenEvent() {
		t.Errorf("heard %+v, want the last one alone", heard)
	}
	if !bytes.Contains(log.Bytes(), []byte("version 2, and this node knows 1")) {
		t.Errorf("the log says %q", log.String())
	}
}
