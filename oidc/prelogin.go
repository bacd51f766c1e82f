package oidc

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/seal"
)

const (
	// preLoginLife is how long a sign-in may take.
	preLoginLife = 10 * time.Minute
	// claimLife is how long a used sign-in is remembered: until no node's clock, if it is
	// off by less than five minutes, takes its cookie any more.
	claimLife = preLoginLife + 5*time.Minute
	// preLoginKept is how long the browser keeps its cookie. It is longer, so that who
	// comes back too late is signed in afresh and still gets where they wanted to go.
	preLoginKept = time.Hour

	// maxPreLogins and maxPreLoginBytes bound the cookies that sign-ins leave in one
	// browser, names and values. A request's header must stay within what servers in
	// front of us take in one line, 8 KiB.
	maxPreLogins     = 5
	maxPreLoginBytes = 6 << 10
	// maxPreLoginsSeen bounds the work that a request full of cookies makes.
	maxPreLoginsSeen = 20

	preLoginIDSize = 16 // hex digits
)

// A preLogin is what must be known when the browser comes back from the provider. It
// is sealed in a cookie of its own, so tabs don't disturb each other: CBOR with small
// integer keys. A node ignores fields that it does not know, so new ones need no new
// version, unless a node that does not know them may not complete the sign-in.
type preLogin struct {
	Version  int    `cbor:"0,keyasint"`
	Provider string `cbor:"1,keyasint"`
	State    string `cbor:"2,keyasint"`
	Nonce    string `cbor:"3,keyasint"`
	Verifier string `cbor:"4,keyasint"`
	ReturnTo string `cbor:"5,keyasint"`
	Issued   int64  `cbor:"6,keyasint"` // Unix seconds
	Issuer   string `cbor:"7,keyasint,omitempty"`
}

const preLoginVersion = 1

// errOtherVersion: a node of another version of coatcheck wrote it, and can read it.
var errOtherVersion = errors.New("written by another version of coatcheck")

// strict decodes nothing that our own encoder would not have written, but for fields of a
// later version, which it ignores.
var strict = func() cbor.DecMode {
	mode, err := cbor.DecOptions{
		DupMapKey:   cbor.DupMapKeyEnforcedAPF,
		IndefLength: cbor.IndefLengthForbidden,
		TagsMd:      cbor.TagsForbidden,
	}.DecMode()
	if err != nil {
		panic(err) // the options are constant
	}
	return mode
}()

// unmarshal decodes a value that has its version as field 0. It returns errOtherVersion or
// seal.ErrBroken.
func unmarshal(plain []byte, version int, v any) error {
	var head struct {
		Version int `cbor:"0,keyasint"`
	}
	if strict.Unmarshal(plain, &head) != nil {
		return seal.ErrBroken
	}
	if head.Version != version {
		return errOtherVersion
	}
	if strict.Unmarshal(plain, v) != nil {
		return seal.ErrBroken
	}
	return nil
}

// preLoginName returns the name of the cookie for a sign-in with this state. The state
// itself is not in it: it would come with every request.
func (p *RelyingParty) preLoginName(state string) string {
	sum := sha256.Sum256([]byte(state))
	return p.Jar.Name("login-" + hex.EncodeToString(sum[:])[:preLoginIDSize])
}

// isPreLogin tells whether a cookie of this name is one of a sign-in.
func (p *RelyingParty) isPreLogin(name string) bool {
	id, ok := strings.CutPrefix(name, p.Jar.Name("login-"))
	return ok && len(id) == preLoginIDSize && strings.Trim(id, "0123456789abcdef") == ""
}

func (p *RelyingParty) preLoginPlace(name string) seal.Place {
	return seal.Place{Purpose: "login", Tenant: p.Tenant, Cookie: name}
}

// keepPreLogin adds the cookie for a new sign-in to h, and expires those of the
// request that are in its way.
func (p *RelyingParty) keepPreLogin(h, request http.Header, pre preLogin) error {
	pre.Version = preLoginVersion
	plain, err := cbor.Marshal(pre)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	name := p.preLoginName(pre.State)
	value, err := p.Ring.SealValue(p.preLoginPlace(name), plain)
	if err != nil {
		return err
	}
	size := len(name) + len(value)
	if size > cookie.MaxSize {
		// The return URL is bounded, so it is the names in the configuration.
		return fmt.Errorf("the pre-login cookie has %d bytes, a browser keeps %d", size, cookie.MaxSize)
	}
	p.makeRoom(h, request, size)
	p.Jar.Set(h, name, value, preLoginKept)
	return nil
}

// makeRoom expires pre-login cookies of the request: those that are over or broken,
// and the oldest if there are too many beside a new one of the given size. One that
// other keys have sealed, or another version, may still be good on another node; it counts
// as the oldest.
func (p *RelyingParty) makeRoom(h, request http.Header, size int) {
	type held struct {
		name   string
		size   int
		issued int64
	}
	var kept []held
	seen := 0
	for name, value := range cookie.Each(request) {
		if !p.isPreLogin(name) {
			continue
		}
		if seen++; seen > maxPreLoginsSeen {
			break
		}
		pre, err := p.openPreLogin(name, value)
		foreign := errors.Is(err, seal.ErrUnknownKey) || errors.Is(err, errOtherVersion)
		if err != nil && !foreign || err == nil && p.left(pre) <= 0 {
			p.Jar.Expire(h, name)
			continue
		}
		kept = append(kept, held{name, len(name) + len(value), pre.Issued})
	}
	slices.SortStableFunc(kept, func(a, b held) int { return cmp.Compare(b.issued, a.issued) })
	count := 1
	for _, k := range kept {
		count++
		size += k.size
		if count > maxPreLogins || size > maxPreLoginBytes {
			p.Jar.Expire(h, k.name)
		}
	}
}

// openPreLogin returns errOtherVersion or an error of the ring's.
func (p *RelyingParty) openPreLogin(name, value string) (preLogin, error) {
	plain, err := p.Ring.OpenValue(p.preLoginPlace(name), value)
	if err != nil {
		return preLogin{}, err
	}
	var pre preLogin
	if err := unmarshal(plain, preLoginVersion, &pre); err != nil {
		return preLogin{}, err
	}
	return pre, nil
}

// left is what is left of a sign-in's time.
func (p *RelyingParty) left(pre preLogin) time.Duration {
	return preLoginLife - p.Now().Sub(time.Unix(pre.Issued, 0))
}

// errNoPreLogin: the browser has no cookie for this state.
var errNoPreLogin = errors.New("no sign-in with this state was started in this browser")

// findPreLogin returns the sign-in that a state belongs to. Of several cookies of one
// name, the first that opens counts. It returns errNoPreLogin, or the error of openPreLogin
// for the last one.
func (p *RelyingParty) findPreLogin(request http.Header, state string) (name string, pre preLogin, err error) {
	name, err = p.preLoginName(state), errNoPreLogin
	seen := 0
	for n, value := range cookie.Each(request) {
		if n != name {
			continue
		}
		if pre, err = p.openPreLogin(name, value); err == nil {
			break
		}
		if seen++; seen == maxPreLoginsSeen {
			break
		}
	}
	return name, pre, err
}
