package metrics

import "testing"

// There is one key at a time, and the one before is gone.
func TestSealingKey(t *testing.T) {
	m := newTest()
	current := "0123456789abcdef"
	m.SealingKey(func() string { return current })
	wantLines(t, m, map[string]bool{`coatcheck_sealing_key{key="0123456789abcdef"} 1`: true})
	current = "fedcba9876543210"
	wantLines(t, m, map[string]bool{
		`coatcheck_sealing_key{key="fedcba9876543210"} 1`: true,
		`coatcheck_sealing_key{key="0123456789abcdef"}`:   false,
	})
}
