package main

import "sync/atomic"

// A trouble remembers what came of something that is tried again and again, so that it is
// told once. One goroutine notes; anybody may ask whether it has failed.
type trouble struct {
	failed atomic.Bool // when it was tried last
	last   string      // the error of that
}

// note takes down what came of trying once more. tell says that err is to be told, because
// somebody has asked or it is news; over, that what had failed has not this time.
func (t *trouble) note(err error, asked bool) (tell, over bool) {
	failed := t.failed.Swap(err != nil)
	if err == nil {
		t.last = ""
		return false, failed
	}
	tell = asked || err.Error() != t.last
	t.last = err.Error()
	return tell, false
}
