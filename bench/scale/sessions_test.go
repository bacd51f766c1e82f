package scale

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/coatcheck/coatcheck/store"
)

const (
	// valueBytes is the size of a sealed record with an ID token, an access token and a
	// refresh token in it.
	valueBytes = 2 << 10
	// dataBytes is what a session's description takes in its entry: issuer, subject,
	// addresses, a browser's name.
	dataBytes = 320
	// perUser is how many sessions a user has.
	perUser = 2
	// life outlasts the measurement.
	life = 24 * time.Hour
	// tenant is the keyed hash of one, as all names in an entry are.
	tenant = "3f1c5d0a9e7b42688d21c0f4a6b7e935"
)

var limits = store.Limits{PerUser: 5, OnLimit: store.EvictOldest}

// A session is what the store keeps of one.
type session struct {
	entry store.Entry
	value []byte
}

// session returns the i-th session of a server. Its names are as long as those that
// sessions have, and spread as evenly.
func (s *server) session(i int) session {
	user := i / perUser
	noise := s.noise[i%(len(s.noise)-valueBytes-dataBytes):]
	return session{
		entry: store.Entry{
			ID:     name("id", i)[:24],
			Tenant: tenant,
			User:   name("user", user),
			App:    name("app", i%3),
			SID:    name("sid", i),
			Record: "__Host-coatcheck-" + name("record", i),
			Data:   noise[valueBytes : valueBytes+dataBytes],
		},
		value: noise[:valueBytes],
	}
}

// next returns a session that was not there before, of a user who was not.
func (s *server) next() session {
	s.made += perUser
	return s.session(s.made)
}

func name(kind string, i int) string {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(kind), uint64(i)))
	return hex.EncodeToString(sum[:16])
}

// newNoise returns bytes that don't compress.
func newNoise() []byte {
	noise := make([]byte, 1<<20)
	r := rand.NewChaCha8([32]byte{})
	_, _ = r.Read(noise)
	return noise
}

// begin keeps a session, as a sign-in does.
func (s *server) begin(ctx context.Context, one session) error {
	if err := s.Create(ctx, one.entry.Record, one.value, life); err != nil {
		return err
	}
	_, err := s.Admit(ctx, one.entry, life, limits, "")
	return err
}

// fill begins n sessions.
func (s *server) fill(ctx context.Context, n int) (filled, error) {
	// What a server makes room for at its first session, scripts for one, is not counted.
	first := s.session(1 << 39)
	if err := errors.Join(s.begin(ctx, first), s.Delete(ctx, first.entry.Record), s.Remove(ctx, first.entry)); err != nil {
		return filled{}, err
	}
	before, err := s.size(ctx)
	if err != nil {
		return filled{}, err
	}
	began := time.Now()
	// Sessions of one user begin one after the other, here by one worker.
	err = parallel((n+perUser-1)/perUser, s.workers, func(user int) error {
		for i := user * perUser; i < min(n, (user+1)*perUser); i++ {
			if err := s.begin(ctx, s.session(i)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return filled{}, err
	}
	took := time.Since(began)
	s.filled, s.made = n, 1<<40
	if err := s.settle(ctx); err != nil {
		return filled{}, err
	}
	after, err := s.size(ctx)
	if err != nil {
		return filled{}, err
	}
	f := filled{Sessions: n, Parts: map[string]float64{}, PerSec: float64(n) / took.Seconds()}
	for part, bytes := range after {
		f.Parts[part] = float64(bytes-before[part]) / float64(n)
		f.Bytes += f.Parts[part]
	}
	if f.Bytes < valueBytes {
		return f, fmt.Errorf("%.0f bytes per session are less than its record", f.Bytes)
	}
	return f, nil
}
