package devprovider

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"strings"
	"sync"
	"time"
)

// A ledger remembers who is signed in and what was granted to whom. Its size is
// bounded: the oldest sign-ins and grants make room for new ones.
type ledger struct {
	codeLifetime    time.Duration
	sessionLifetime time.Duration

	mu       sync.Mutex
	sessions *shelf[*session] // by the value of the browser's cookie
	grants   *shelf[*grant]   // by grant.id
}

const (
	maxSessions = 10_000
	maxGrants   = 20_000
)

// A session is one person in one browser. Fields are guarded by ledger.mu; ledger
// hands out copies.
type session struct {
	id       string // the sid claim; not the cookie's value
	user     User
	authTime time.Time
	expires  time.Time
	ended    bool
}

// A grant is what one authorization became: a code, then tokens. It ends with its
// session. The fields up to authTime never change; the others are guarded by
// ledger.mu.
type grant struct {
	id          string
	clientID    string
	redirectURI string
	scope       string
	nonce       string
	challenge   string // PKCE, S256
	user        User
	sid         string
	authTime    time.Time

	session     *session
	code        digest
	codeExpires time.Time
	redeemed    bool
	refresh     digest // of the one refresh token that works; older ones are replays
	revoked     bool
}

type digest [sha256.Size]byte

// Reasons why a code or refresh token is refused: invalid_grant (RFC 6749 §5.2).
var (
	errUnknownGrant = errors.New("unknown, expired, revoked or issued to another client")
	errReplayed     = errors.New("used before; every token that came from it is revoked")
	errRedirectURI  = errors.New("redirect_uri differs from the authorization request")
	errVerifier     = errors.New("code_verifier does not fit the code_challenge")
)

func newLedger(codeLifetime, sessionLifetime time.Duration) *ledger {
	return &ledger{
		codeLifetime:    codeLifetime,
		sessionLifetime: sessionLifetime,
		sessions:        newShelf[*session](maxSessions, sessionLifetime),
		grants:          newShelf[*grant](maxGrants, sessionLifetime),
	}
}

// signIn begins a session and returns the value of its cookie, always a new one.
// The session that the old cookie names is continued if it is the same person's, so
// that proving it again does not end what was granted before; anybody else's ends.
func (l *ledger) signIn(u User, oldCookie string) (cookie string, _ session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.sessions.get(oldCookie)
	l.sessions.drop(oldCookie)
	if !ok || s.user.Username != u.Username {
		if ok {
			s.ended = true
		}
		s = &session{id: rand.Text(), user: u}
	}
	s.authTime = time.Now()
	s.expires = s.authTime.Add(l.sessionLifetime)
	cookie = rand.Text()
	l.sessions.put(cookie, s)
	return cookie, *s
}

// session returns the live session that a cookie names.
func (l *ledger) session(cookie string) (session, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.sessions.get(cookie)
	if !ok {
		return session{}, false
	}
	return *s, true
}

// signOut ends the session that a cookie names, and every grant made in it.
func (l *ledger) signOut(cookie string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, ok := l.sessions.get(cookie); ok {
		s.ended = true
		l.sessions.drop(cookie)
	}
}

// authorize records a grant for the person whom the cookie names and returns its
// code. It returns false if the session has ended meanwhile.
func (l *ledger) authorize(cookie string, g grant) (code string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.sessions.get(cookie)
	if !ok {
		return "", false
	}
	g.id = rand.Text()
	g.session, g.user, g.sid, g.authTime = s, s.user, s.id, s.authTime
	code, g.code = newToken(g.id)
	g.codeExpires = time.Now().Add(l.codeLifetime)
	l.grants.put(g.id, &g)
	return code, true
}

// redeem turns a code into a grant and its first refresh token. A code works once
// (RFC 6749 §4.1.2): when it comes again, everything it became is revoked.
func (l *ledger) redeem(clientID, code, redirectURI, verifier string) (grant, string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, secret, ok := l.find(clientID, code)
	if !ok || !secret.equal(g.code) {
		return grant{}, "", errUnknownGrant
	}
	if g.redeemed {
		g.revoked = true
		return grant{}, "", errReplayed
	}
	g.redeemed = true // whatever follows: nobody gets to try a second verifier
	switch {
	case !time.Now().Before(g.codeExpires):
		return grant{}, "", errUnknownGrant
	case redirectURI != g.redirectURI:
		return grant{}, "", errRedirectURI
	case !fitsChallenge(verifier, g.challenge):
		return grant{}, "", errVerifier
	}
	refresh := g.rotate()
	return *g, refresh, nil
}

// refresh exchanges a refresh token for the next one. A token that was exchanged
// before revokes the grant (RFC 9700 §4.14.2).
func (l *ledger) refresh(clientID, token string) (grant, string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, secret, ok := l.find(clientID, token)
	if !ok {
		return grant{}, "", errUnknownGrant
	}
	if !secret.equal(g.refresh) {
		g.revoked = true
		return grant{}, "", errReplayed
	}
	refresh := g.rotate()
	return *g, refresh, nil
}

// granted returns the live grant of an access token.
func (l *ledger) granted(id string) (grant, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, ok := l.grants.get(id)
	if !ok || !g.live() {
		return grant{}, false
	}
	return *g, true
}

// find returns the live grant of this client that a code or refresh token belongs to,
// and the digest of the whole token. l.mu must be held.
func (l *ledger) find(clientID, token string) (*grant, digest, bool) {
	id, _, _ := strings.Cut(token, ".")
	g, ok := l.grants.get(id)
	if !ok || g.clientID != clientID || !g.live() {
		return nil, digest{}, false
	}
	return g, sha256.Sum256([]byte(token)), true
}

func (g *grant) live() bool {
	return !g.revoked && !g.session.ended && time.Now().Before(g.session.expires)
}

func (g *grant) rotate() (token string) {
	token, g.refresh = newToken(g.id)
	return token
}

// newToken returns a code or refresh token of a grant, "grant.secret", and what is
// kept of it.
func newToken(grantID string) (string, digest) {
	token := grantID + "." + rand.Text()
	return token, sha256.Sum256([]byte(token))
}

func (d digest) equal(other digest) bool {
	return subtle.ConstantTimeCompare(d[:], other[:]) == 1
}

// fitsChallenge verifies PKCE's S256 (RFC 7636 §4.6).
func fitsChallenge(verifier, challenge string) bool {
	if len(verifier) < 43 || len(verifier) > 128 { // RFC 7636 §4.1
		return false
	}
	sum := sha256.Sum256([]byte(verifier))
	got := base64.RawURLEncoding.EncodeToString(sum[:])
	return subtle.ConstantTimeCompare([]byte(got), []byte(challenge)) == 1
}
