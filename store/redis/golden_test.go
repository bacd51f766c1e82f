package redis

import (
	"encoding/json"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/internal/testenv/golden"
	"github.com/coatcheck/coatcheck/store/storetest"
)

// goldenPrefix is what the keys of golden values begin with.
const goldenPrefix = "coatcheck:"

// A dumped key is one as it lies in a server.
type dumped struct {
	Key    string
	Type   string
	String []byte            `json:",omitempty"`
	Hash   map[string][]byte `json:",omitempty"`
	Sorted map[string]string `json:",omitempty"` // member → score
	Stream []map[string]any  `json:",omitempty"` // fields of each entry
}

// restore puts a key back, for a long time.
func (d dumped) restore(server *testenv.Redis) {
	switch d.Type {
	case "string":
		server.Must("SET", d.Key, string(d.String))
	case "hash":
		for field, value := range d.Hash {
			server.Must("HSET", d.Key, field, string(value))
		}
	case "zset":
		for member, score := range d.Sorted {
			server.Must("ZADD", d.Key, score, member)
		}
	case "stream":
		for _, fields := range d.Stream {
			args := []string{"XADD", d.Key, "*"}
			for name, value := range fields {
				args = append(args, name, value.(string))
			}
			server.Must(args...)
		}
	}
	server.Must("PEXPIREAT", d.Key, strconv.FormatInt(time.Now().AddDate(50, 0, 0).UnixMilli(), 10))
}

// What an earlier version left in a server is read and carried on, under the same keys.
func TestGolden(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{})
	s := open(t, Options{URL: server.URL(), KeyPrefix: goldenPrefix})
	var keys []dumped
	if err := json.Unmarshal(golden.Read(t, "redis-1.json"), &keys); err != nil {
		t.Fatal(err)
	}
	for _, d := range keys {
		d.restore(server)
	}
	events, err := s.events(t.Context(), eventID{})
	if err != nil || len(events) != 1 {
		t.Fatalf("events: %+v, %v", events, err)
	}
	golden.Check(t, "redis-1.json", string(storetest.GoldenEvent), string(events[0].data), nil)
	storetest.CheckGolden(t, s)
	if t.Failed() {
		t.Log(golden.Advice)
	}

	// What is written now is read likewise, and lies under the same keys, by which nodes of
	// the earlier version find it.
	server.Must("FLUSHALL")
	storetest.WriteGolden(t, s)
	var want, got []string
	for _, d := range keys {
		want = append(want, d.Type+" "+d.Key)
	}
	for _, d := range keys {
		typ, err := server.Do("TYPE", d.Key).ToString()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, typ+" "+d.Key)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("this version keeps things elsewhere (-golden +now):\n%s\n%s", diff, golden.Advice)
	}
	if n, err := server.Do("DBSIZE").AsInt64(); err != nil || int(n) != len(keys) {
		t.Errorf("this version has %d keys, where there were %d: %v", n, len(keys), err)
	}
	storetest.CheckGolden(t, s)
}
