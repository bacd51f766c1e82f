package redis

import (
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/internal/testenv"
	"github.com/coatcheck/coatcheck/store"
	"github.com/coatcheck/coatcheck/store/storetest"
)

func TestRegistryConformance(t *testing.T) {
	server := testenv.StartRedis(t, testenv.RedisOptions{Persist: true})
	opts := Options{URL: server.URL(), Timeout: 300 * time.Millisecond}
	outages := []storetest.Outage{
		{Name: "killed", Begin: func(testing.TB) func() { server.Kill(); return server.Restart }},
		{Name: "restarted", Begin: func(testing.TB) func() { server.Stop(); return server.Restart }},
		{Name: "hung", Begin: func(testing.TB) func() { server.Pause(); return server.Resume }},
	}
	storetest.RunRegistry(t, storetest.RegistryHarness{Open: opener[store.Registry](opts), Outages: outages})
	storetest.RunLeaser(t, storetest.LeaserHarness{Open: opener[store.Leaser](opts), Outages: outages})
	storetest.RunJournal(t, storetest.JournalHarness{Open: opener[store.Journal](opts), Outages: outages})
}
