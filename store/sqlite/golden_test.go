package sqlite

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/coatcheck/coatcheck/internal/testenv/golden"
	"github.com/coatcheck/coatcheck/store/storetest"
)

// A file that an earlier version left is opened, read and carried on.
func TestGolden(t *testing.T) {
	for _, name := range []string{"file-2.sql"} {
		file := filepath.Join(t.TempDir(), "coatcheck.db")
		c, err := dial(file)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.exec(string(golden.Read(t, name)))
		if err := errors.Join(err, c.Close()); err != nil {
			t.Fatal(err)
		}
		storetest.CheckGolden(t, openAt(t, file))
		if t.Failed() {
			t.Logf("%s: %s", name, golden.Advice)
		}
	}
	s := openNew(t)
	storetest.WriteGolden(t, s)
	storetest.CheckGolden(t, s)
}
