package storetest

import (
	"testing"

	"github.com/coatcheck/coatcheck/store"
)

// A BackendHarness gives all suites their backends.
type BackendHarness struct {
	// Open returns one Backend per node, all on the same data, which is empty and shared
	// with no earlier call. Where one process owns the data, the nodes are one Backend.
	// The harness closes them when the test ends.
	Open func(t testing.TB, nodes int) []store.Backend
	// Outages are the ways in which the backend can go away. None: it can't.
	Outages []Outage
}

// RunBackend runs all suites. It takes as long as RunRegistry, or a little longer.
func RunBackend(t *testing.T, h BackendHarness) {
	var (
		stores     = Harness{opened[store.Store](h), h.Outages}
		registries = RegistryHarness{opened[store.Registry](h), h.Outages}
		leasers    = LeaserHarness{opened[store.Leaser](h), h.Outages}
		watchers   = WatcherHarness{opened[WatchedStore](h), h.Outages}
		journals   = JournalHarness{opened[store.Journal](h), h.Outages}
	)
	// What takes patience begins first, and is waited for beside all else.
	finish := beginPatience(t, registries)
	runSections(t, stores, sections())
	runSections(t, registries, registrySections())
	runSections(t, leasers, leaserSections())
	runSections(t, watchers, watcherSections())
	runSections(t, journals, journalSections())
	RunLister(t, h)
	t.Run("Clock", func(t *testing.T) { testClock(t, h.Open(t, 2)) })
	t.Run("Patience", func(t *testing.T) { finish(t, !testing.Short()) })
	runOutages(t, "Outage", stores, h.Outages, testOutage)
	runOutages(t, "RegistryOutage", registries, h.Outages, testRegistryOutage)
	runOutages(t, "LeaserOutage", leasers, h.Outages, testLeaserOutage)
	runOutages(t, "WatchOutage", watchers, h.Outages, testWatchOutage)
	runOutages(t, "JournalOutage", journals, h.Outages, testJournalOutage)
}

// opened is h.Open for one of the interfaces.
func opened[S any](h BackendHarness) func(testing.TB, int) []S {
	return func(t testing.TB, nodes int) []S {
		t.Helper()
		var all []S
		for _, b := range h.Open(t, nodes) {
			all = append(all, any(b).(S))
		}
		return all
	}
}
