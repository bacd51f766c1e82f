package store

// A Backend does all that coatcheck asks of a place past a single node. Its methods that
// block, Watch and Follow, return when their context ends; Close comes after that.
type Backend interface {
	Store
	Registry
	Leaser
	Watcher
	Journal
	Lister
	Clock
}
