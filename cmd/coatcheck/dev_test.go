package main

import (
	"testing"

	"github.com/coatcheck/coatcheck/config"
)

// What dev writes is a configuration, whatever stands in an address.
func TestDevConfig(t *testing.T) {
	file, err := writeDevConfig(t.TempDir(), devConfig{
		listen: "[::1]:4199", public: "http://[::1]:4199", issuer: "http://127.0.0.1:5556", app: "http://127.0.0.1:9001", secret: "s3cret",
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Listen != "[::1]:4199" || cfg.PublicURL.String() != "http://[::1]:4199" || cfg.Providers[0].ClientSecret.Reveal() != "s3cret" {
		t.Errorf("listen %s, public_url %s", cfg.Listen, cfg.PublicURL)
	}
}
