package audit

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

// version is that of the journal's entries. A node ignores fields that it does not know,
// so new ones need no new version. One that a node may not ignore does: then older nodes
// leave the entry alone.
const version = 1

// entry is an event as it stands in the journal.
type entry struct {
	Version int             `json:"v"`
	Event   coatcheck.Event `json:"event"`
}

var errNameless = errors.New("an event needs an id and a type")

// encode returns e as an entry of the journal.
func encode(e coatcheck.Event) ([]byte, error) {
	if e.ID == "" || e.Type == "" {
		return nil, errNameless
	}
	return json.Marshal(entry{version, e})
}

// decode returns the event of an entry. Its error repeats nothing of data, which anybody
// may have written.
func decode(data []byte) (coatcheck.Event, error) {
	if len(data) > store.MaxEvent {
		return coatcheck.Event{}, store.ErrTooLarge
	}
	var v struct {
		Version int `json:"v"`
	}
	if json.Unmarshal(data, &v) != nil {
		return coatcheck.Event{}, errors.New("not JSON, or not an entry")
	}
	if v.Version != version {
		return coatcheck.Event{}, fmt.Errorf("version %d, and this node knows %d", v.Version, version)
	}
	var en entry
	if json.Unmarshal(data, &en) != nil {
		return coatcheck.Event{}, errors.New("not an event")
	}
	if en.Event.ID == "" || en.Event.Type == "" {
		return coatcheck.Event{}, errNameless
	}
	return en.Event, nil
}
