package storetest

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

// only returns the section that must notice, or all if none must.
func only[H any](all []section[H], name string) []section[H] {
	if name == "" {
		return all
	}
	return slices.DeleteFunc(all, func(s section[H]) bool { return s.name != name })
}

func TestSuiteRejectsBrokenLeasers(t *testing.T) {
	changing := func(change func(name string, l store.Lease) store.Lease) func(store.Leaser) store.Leaser {
		return func(l store.Leaser) store.Leaser { return leases{l, change} }
	}
	for _, tc := range []struct {
		name    string
		broken  func(store.Leaser) store.Leaser
		section string // the one that must notice
	}{
		{"sound", func(l store.Leaser) store.Leaser { return l }, ""},
		{"no fencing", changing(func(_ string, l store.Lease) store.Lease { return unfenced{l} }), "Lease"},
		{"two may hold", func(l store.Leaser) store.Leaser {
			return &leasesInTwoSteps{soundLeaser: l, held: map[string]bool{}}
		}, "LeaseRace"},
		{"no lease is lost", changing(func(_ string, l store.Lease) store.Lease { return neverLost{l} }), "LeaseExpiry"},
		{"Release ends anybody's", func(l store.Leaser) store.Leaser {
			var mu sync.Mutex
			held := map[string]store.Lease{}
			return leases{l, func(name string, l store.Lease) store.Lease {
				mu.Lock()
				defer mu.Unlock()
				held[name] = l
				return releasesAny{l, &mu, held, name}
			}}
		}, "LeaseExpiry"},
		{"Renew extends nothing", changing(func(_ string, l store.Lease) store.Lease {
			return renewsNothing{l, time.Now().Add(short)}
		}), "LeaseRenew"},
		{"waits for who holds it", func(l store.Leaser) store.Leaser { return waitsForLease{l} }, "Lease"},
		{"takes a cancelled call for an answer", func(l store.Leaser) store.Leaser { return takesCancelForHeld{l} }, "LeaserCancelled"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubbled(t, func(t *testing.T) {
				h := LeaserHarness{Open: func(t testing.TB, nodes int) []store.Leaser {
					return slices.Repeat([]store.Leaser{tc.broken(openMemory(t))}, nodes)
				}}
				wantRejected(t, tc.section, failures(t, h, only(leaserSections(), tc.section)))
			})
		})
	}
}

func TestLeaserOutageSection(t *testing.T) {
	for _, tc := range []struct {
		name    string
		out     *outage
		section string
	}{
		{"sound", &outage{says: errRefused}, ""},
		{"takes an outage for a holder", &outage{says: store.ErrHeld}, "Outage"},
		{"takes an outage for a loss", &outage{says: store.ErrLost}, "Outage"},
		{"loses leases", &outage{says: errRefused}, "Outage"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubbled(t, func(t *testing.T) {
				m := openMemory(t)
				if tc.name == "loses leases" {
					tc.out.back = func() { _ = m.Close() }
				}
				h := LeaserHarness{Open: func(_ testing.TB, nodes int) []store.Leaser {
					return slices.Repeat([]store.Leaser{awayLeaser{m, tc.out}}, nodes)
				}}
				wantRejected(t, tc.section, failures(t, h, outageSections(tc.out.outages(), testLeaserOutage)))
			})
		})
	}
}

func TestSuiteRejectsBrokenWatchers(t *testing.T) {
	// each makes every node of a memory by itself.
	each := func(node func(m WatchedStore, n int) WatchedStore) func(testing.TB, WatchedStore, int) []WatchedStore {
		return func(_ testing.TB, m WatchedStore, nodes int) []WatchedStore {
			var all []WatchedStore
			for n := range nodes {
				all = append(all, node(m, n))
			}
			return all
		}
	}
	changing := func(change func(store.Feed) store.Feed) func(testing.TB, WatchedStore, int) []WatchedStore {
		return each(func(m WatchedStore, _ int) WatchedStore { return feeds{m, change} })
	}
	for _, tc := range []struct {
		name    string
		broken  func(t testing.TB, m WatchedStore, nodes int) []WatchedStore
		section string // the one that must notice
	}{
		{"sound", each(func(m WatchedStore, _ int) WatchedStore { return m }), ""},
		{"misses deletes", func(_ testing.TB, m WatchedStore, nodes int) []WatchedStore {
			return slices.Repeat([]WatchedStore{untold{m, &untoldKeys{keys: map[string]bool{}}, false}}, nodes)
		}, "Watch"},
		{"misses replaces", func(_ testing.TB, m WatchedStore, nodes int) []WatchedStore {
			return slices.Repeat([]WatchedStore{untold{m, &untoldKeys{keys: map[string]bool{}}, true}}, nodes)
		}, "Watch"},
		{"misses other nodes", func(_ testing.TB, m WatchedStore, nodes int) []WatchedStore {
			var last sync.Map
			var all []WatchedStore
			for n := range nodes {
				all = append(all, ownFeed{m, &last, n})
			}
			return all
		}, "Watch"},
		{"is current too early", changing(func(f store.Feed) store.Feed {
			changed := f.Changed
			f.Changed = func(key string) { time.AfterFunc(5*time.Millisecond, func() { changed(key) }) }
			return f
		}), "WatchLoad"},
		{"is current in the future", changing(func(f store.Feed) store.Feed {
			current := f.Current
			f.Current = func(asOf time.Time) { current(asOf.Add(time.Second)) }
			return f
		}), "WatchBeats"},
		{"begins without a reset", changing(func(f store.Feed) store.Feed {
			f.Reset = func() {}
			return f
		}), "WatchBeats"},
		{"is current once", changing(func(f store.Feed) store.Feed {
			current := f.Current
			var once sync.Once
			f.Current = func(asOf time.Time) { once.Do(func() { current(asOf.Add(time.Nanosecond)) }) }
			return f
		}), "WatchBeats"},
		{"tells of touches", each(func(m WatchedStore, _ int) WatchedStore { return tellsTouches{m} }), "WatchTouch"},
		{"goes on after the end", func(t testing.TB, m WatchedStore, nodes int) []WatchedStore {
			return slices.Repeat([]WatchedStore{lingers{m, t.Context()}}, nodes)
		}, "WatchEnds"},
		{"says nothing of the end", each(func(m WatchedStore, _ int) WatchedStore { return forgivesEnd{m} }), "WatchEnds"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubbled(t, func(t *testing.T) {
				h := WatcherHarness{Open: func(t testing.TB, nodes int) []WatchedStore {
					return tc.broken(t, openMemory(t), nodes)
				}}
				wantRejected(t, tc.section, failures(t, h, only(watcherSections(), tc.section)))
			})
		})
	}
}

// In a bubble no instant has a monotonic reading, so this is told to the section outside.
func TestSuiteRejectsInstantsWithoutMonotonicReading(t *testing.T) {
	t.Parallel()
	h := WatcherHarness{Open: func(t testing.TB, nodes int) []WatchedStore {
		return slices.Repeat([]WatchedStore{feeds{openMemory(t), func(f store.Feed) store.Feed {
			current := f.Current
			f.Current = func(asOf time.Time) { current(asOf.Round(0)) }
			return f
		}}}, nodes)
	}}
	wantRejected(t, "WatchBeats", failures(t, h, only(watcherSections(), "WatchBeats")))
}

func TestWatchOutageSection(t *testing.T) {
	for _, tc := range []struct {
		name    string
		away    awayFeed
		section string
	}{
		{"sound", awayFeed{}, ""},
		{"goes on as if it had heard everything", awayFeed{noReset: true}, "Outage"},
		{"is current without asking", awayFeed{blind: true}, "Outage"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubbled(t, func(t *testing.T) {
				tc.away.soundFeed, tc.away.out = openMemory(t), &outage{says: errRefused}
				h := WatcherHarness{Open: func(_ testing.TB, nodes int) []WatchedStore {
					return slices.Repeat([]WatchedStore{tc.away}, nodes)
				}}
				wantRejected(t, tc.section, failures(t, h, outageSections(tc.away.out.outages(), testWatchOutage)))
			})
		})
	}
}

func TestSuiteRejectsBrokenJournals(t *testing.T) {
	all := func(j store.Journal, nodes int) []store.Journal { return slices.Repeat([]store.Journal{j}, nodes) }
	for _, tc := range []struct {
		name    string
		broken  func(j store.Journal, nodes int) []store.Journal
		section string // the one that must notice
	}{
		{"sound", all, ""},
		{"misses other nodes", func(j store.Journal, nodes int) []store.Journal {
			var own []store.Journal
			var mine sync.Map
			for n := range nodes {
				own = append(own, ownJournal{j, &mine, n, false})
			}
			return own
		}, "Journal"},
		{"misses its own", func(j store.Journal, nodes int) []store.Journal {
			var own []store.Journal
			var mine sync.Map
			for n := range nodes {
				own = append(own, ownJournal{j, &mine, n, true})
			}
			return own
		}, "Journal"},
		{"ends events at NUL", func(j store.Journal, nodes int) []store.Journal {
			return all(journals{soundJournal: j, append: func(data []byte) []byte {
				if i := slices.Index(data, 0); i >= 0 {
					return data[:i]
				}
				return data
			}}, nodes)
		}, "JournalBytes"},
		{"keeps its input", func(j store.Journal, nodes int) []store.Journal {
			return all(keepsEvents{j, new(sync.Map)}, nodes)
		}, "JournalBytes"},
		{"shares its output", func(j store.Journal, nodes int) []store.Journal {
			return all(journals{soundJournal: j, told: sharesEvents()}, nodes)
		}, "JournalBytes"},
		{"bounds are the backend's", func(j store.Journal, nodes int) []store.Journal { return all(sendsLargeEvents{j}, nodes) }, "JournalBytes"},
		{"is ready too early", func(j store.Journal, nodes int) []store.Journal { return all(hurriesReady{j}, nodes) }, "JournalReady"},
		{"tells one in a hundred to nobody", func(j store.Journal, nodes int) []store.Journal {
			var mu sync.Mutex
			n := 0
			return all(journals{soundJournal: j, told: func(told func([]byte)) func([]byte) {
				return func(data []byte) {
					mu.Lock()
					n++
					lost := n%100 == 0
					mu.Unlock()
					if !lost {
						told(data)
					}
				}
			}}, nodes)
		}, "JournalLoad"},
		{"takes a cancelled call for an answer", func(j store.Journal, nodes int) []store.Journal {
			return all(takesCancelForAppended{j}, nodes)
		}, "JournalCancelled"},
	} {
		if raceDetected && tc.name == "keeps its input" {
			continue
		}
		t.Run(tc.name, func(t *testing.T) {
			bubbled(t, func(t *testing.T) {
				h := JournalHarness{Open: func(t testing.TB, nodes int) []store.Journal {
					return tc.broken(openMemory(t), nodes)
				}}
				wantRejected(t, tc.section, failures(t, h, only(journalSections(), tc.section)))
			})
		})
	}
}

func TestJournalOutageSection(t *testing.T) {
	for _, tc := range []struct {
		name    string
		out     *outage
		deaf    bool
		section string
	}{
		{"sound", &outage{says: errRefused}, false, ""},
		{"takes an outage for success", &outage{}, false, "Outage"},
		{"loses what came before a reader was back", &outage{says: errRefused}, true, "Outage"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubbled(t, func(t *testing.T) {
				j := awayJournal{openMemory(t), tc.out, tc.deaf}
				h := JournalHarness{Open: func(_ testing.TB, nodes int) []store.Journal {
					return slices.Repeat([]store.Journal{j}, nodes)
				}}
				wantRejected(t, tc.section, failures(t, h, outageSections(tc.out.outages(), testJournalOutage)))
			})
		})
	}
}
