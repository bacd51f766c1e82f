package testenv

import (
	"bytes"
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// ask runs a statement as PostgresUser, with psql, and returns its answer.
func (p *Postgres) ask(ctx context.Context, statement string) (string, error) {
	path, args := p.tool.command("psql", "-X", "-w", "-At", "-c", statement, p.URL()+"&connect_timeout=30")
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = p.dir
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	return string(bytes.TrimSpace(out)), err
}

func TestPostgresComesAndGoes(t *testing.T) {
	p := StartPostgres(t, PostgresOptions{})
	if _, err := p.ask(t.Context(), "CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)"); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name string
		do   func()
		up   bool
	}{
		{"Pause", p.Pause, false},
		{"Resume", p.Resume, true},
		{"Kill", p.Kill, false},
		{"Restart", p.Restart, true},
		{"Stop", p.Stop, false},
		{"Restart", p.Restart, true},
	} {
		step.do()
		patience := 300 * time.Millisecond
		if step.up {
			patience = time.Minute
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		answer, err := p.ask(ctx, "SELECT n FROM kept")
		cancel()
		if up := err == nil && answer == "7"; up != step.up {
			t.Errorf("after %s: up = %t (%q, %v), want %t", step.name, up, answer, err, step.up)
		}
	}
}

func TestPostgresAsksForThePassword(t *testing.T) {
	p := StartPostgres(t, PostgresOptions{Password: "of-the-test"})
	if answer, err := p.ask(t.Context(), "SELECT 1"); err == nil {
		t.Errorf("let in without a password: %q", answer)
	}
}

func TestPostgresPairFailsOver(t *testing.T) {
	primary, standby := StartPostgresPair(t, PostgresOptions{})
	if _, err := primary.ask(t.Context(), "CREATE TABLE kept AS SELECT 7 AS n"); err != nil {
		t.Fatal(err)
	}
	if answer, err := standby.ask(t.Context(), "SELECT n, pg_is_in_recovery() FROM kept"); answer != "7|t" {
		t.Errorf("standby: %q, %v", answer, err)
	}
	primary.Kill()
	standby.Promote()
	if answer, err := standby.ask(t.Context(), "INSERT INTO kept VALUES (8) RETURNING n"); !strings.HasPrefix(answer, "8") {
		t.Errorf("promoted: %q, %v", answer, err)
	}
}
