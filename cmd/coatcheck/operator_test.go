package main

import (
	"strings"
	"testing"

	"github.com/coatcheck/coatcheck/config"
)

// A command that is printed can be typed, also where the key ring has no file.
func TestRetireInUse(t *testing.T) {
	for file, want := range map[string]string{
		"keys.json": "coatcheck key retire 0123456789abcdef keys.json --yes",
		"":          "coatcheck key retire 0123456789abcdef FILE --yes", // in the environment
	} {
		err := keyRetireCmd{Key: "0123456789abcdef"}.inUse(&config.Config{Keys: config.Keys{File: file}}, false)
		if !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
