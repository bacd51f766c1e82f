package session

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	mathrand "math/rand/v2"
	"time"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/store"
)

const (
	// refreshLease is for how long a node that has died keeps the others from a session's
	// refresh token. One that lives renews it.
	refreshLease = 10 * time.Second
	// refreshLimit bounds an attempt up to the provider's answer, and what comes after that has
	// been written down; see saveLimit.
	refreshLimit = 2 * time.Minute
	// saveLimit is for how long a node tries to write down what the provider has said. What
	// it gives up then is lost.
	saveLimit = 10 * time.Minute
	// lostPatience is how long a session outlives its access token, at least, after a refresh
	// token was given up for lost: so long, a node that was cut off, and not dead, has to write
	// down what it holds. It tries every saveAgain.
	lostPatience = 3 * time.Second
	saveAgain    = time.Second
	// freshPatience bounds how long requests wait for new tokens, from when their node began
	// to ask for them. After that they are served with the old ones.
	freshPatience = 20 * time.Second
	// lookAgain bounds how long a session is served before needOf is asked again.
	lookAgain = time.Second
	// maxAhead bounds how long before its end an access token is replaced.
	maxAhead = time.Minute
	// minRetry and maxRetry bound how long nothing is tried after a failure.
	minRetry, maxRetry = time.Second, time.Minute
	// misconfiguredRetry is how long nothing is tried where only an operator can help.
	misconfiguredRetry = maxRetry
)

// upToDate returns a session that was loaded by a cookie as it is once everything is done
// that has to be done before a request is served. Where the provider is to be asked anew and
// the access token still lives, that begins and nobody waits for it. Where it has ended, the
// request waits for whoever asks, on whichever node; if nothing comes of it, because the
// provider can't be reached, say, it is served with the old one: that costs nobody the
// session.
//
// It returns ErrInvalid for a session that has ended over this, and CodeUnknown as Load.
func (m *Manager) upToDate(ctx context.Context, cookie string, live *Live) (*Live, error) {
	if instantOf(time.Now()) < live.quiet.Load() {
		return live, nil
	}
	var patience time.Time
	for {
		now := m.Now()
		need := m.needOf(live.Session, now)
		if need == needNothing {
			live.rest(m.renewalDue(live.Session), now)
			return live, nil
		}
		t, err := parseTicket(m.Jar.Session(), cookie)
		if err != nil {
			return nil, ErrInvalid
		}
		switch need {
		case needCheck, needRefresh:
			m.startRenewal(t, live, need)
			live.rest(live.Tokens.AccessExpiry, now)
			return live, nil
		case needEnd:
			return m.endLost(ctx, t)
		}
		a, err := m.awaitRenewal(ctx, t, live, &patience)
		switch {
		case err != nil:
			return nil, coatcheck.E(coatcheck.CodeUnknown, "session.load", err)
		case a == nil:
			return live, nil
		case !a.held:
			return a.live, a.err
		}
		again, _, err := m.open(ctx, cookie)
		if err != nil {
			return nil, err
		}
		if live = again; live.Unverified > 0 {
			return live, nil
		}
	}
}

// rest has the session served without another look for lookAgain, or until a time by the store's
// clock if that comes sooner. That clock may be corrected meanwhile, so it is not for longer.
// It is all the same to a request whether its session's tokens are fresh or being replaced.
func (l *Live) rest(until, now time.Time) {
	d := lookAgain
	if left := until.Sub(now); left > 0 {
		d = min(d, left)
	}
	l.quiet.Store(instantOf(time.Now().Add(d)))
}

// awaitRenewal waits for the attempt to renew a session, and where another node is about it,
// until that has written something or may be dead. It returns nil where there is nothing to
// wait for, or not any more: patience is until when, and is set by the first attempt. The
// error is that of ctx.
func (m *Manager) awaitRenewal(ctx context.Context, t ticket, live *Live, patience *time.Time) (*attempt, error) {
	// Before it is tried: what changes after that is told.
	changed, release := m.renewal.watch(live.handle)
	defer release()
	a := m.startRenewal(t, live, needFresh)
	if a == nil {
		return nil, nil
	}
	if patience.IsZero() {
		*patience = a.began.Add(freshPatience)
	}
	waiting, cancel := context.WithDeadline(ctx, *patience)
	defer cancel()
	select {
	case <-a.done:
	case <-waiting.Done():
		return nil, ctx.Err()
	}
	if !a.held {
		return a, nil
	}
	select {
	case <-changed:
	case <-time.After(m.heldPatience()):
	case <-waiting.Done():
		return nil, ctx.Err()
	}
	return a, nil
}

// endLost ends a session whose tokens were lost, and returns ErrInvalid or CodeUnknown. It
// goes by the store: what this node holds may be older than what was brought after all, and
// then that is returned.
func (m *Manager) endLost(ctx context.Context, t ticket) (*Live, error) {
	live, err := m.read(ctx, t)
	if err == nil {
		if m.needOf(live.Session, m.Now()) != needEnd {
			return live, nil
		}
		err = m.end(ctx, holding{t, live}, coatcheck.ReasonRefreshLost)
	}
	if err != nil && !errors.Is(err, ErrInvalid) {
		return nil, coatcheck.E(coatcheck.CodeUnknown, "session.load", err)
	}
	return nil, ErrInvalid
}

// heldPatience is how long it takes at most to notice that whoever held the lease is gone,
// or to hear of a change where the store's feed does not tell.
func (m *Manager) heldPatience() time.Duration {
	if !m.cache.fresh(instantOf(time.Now())) {
		return time.Second
	}
	return refreshLease/2 + mathrand.N(refreshLease/4)
}

// renewNow does what a session wants of its provider, unless somebody else does it. It
// returns the session as it is afterwards, whether or not anything came of it; held says
// that another node is about it.
func (m *Manager) renewNow(ctx context.Context, t ticket, before *Live) (live *Live, held bool, err error) {
	lease, err := m.Leases.Acquire(ctx, m.leaseName(t.handle), refreshLease)
	switch {
	case errors.Is(err, store.ErrHeld):
		// By one who is about it; or by one who finds that it is done and will tell nothing.
		live, err := m.read(ctx, t)
		switch {
		case errors.Is(err, ErrInvalid):
			return nil, false, ErrInvalid
		case err == nil && m.needOf(live.Session, m.Now()) == needNothing:
			return live, false, nil
		}
		return before, true, nil
	case err != nil: // an access token that is not replaced costs nobody the session
		m.Logger.DebugContext(ctx, "no lease to renew a session", "session", before.Ref, "error", err)
		return before, false, nil
	}
	release := hold(lease)
	defer release()

	live, err = m.read(ctx, t)
	switch {
	case errors.Is(err, ErrInvalid):
		return nil, false, ErrInvalid
	case err != nil:
		return before, false, nil
	}
	switch m.needOf(live.Session, m.Now()) {
	case needCheck:
		live, err = m.recheck(ctx, t, live)
	case needRefresh, needFresh:
		live, err = m.redeem(ctx, t, live)
	}
	if err == nil && m.needOf(live.Session, m.Now()) == needEnd {
		if err = m.end(ctx, holding{t, live}, coatcheck.ReasonRefreshLost); err == nil {
			err = ErrInvalid
		}
	}
	switch {
	case err == nil:
		return live, false, nil
	case errors.Is(err, ErrInvalid):
		return nil, false, ErrInvalid
	default:
		m.Logger.WarnContext(ctx, "a session could not be renewed", "session", before.Ref, "error", err)
		return before, false, nil
	}
}

// leaseName is the name of the lease on a session's refresh token. All versions call it so.
func (m *Manager) leaseName(handle string) string { return "refresh-" + m.name("refresh", handle) }

// maySendAgain tells whether the provider takes the refresh token of an attempt once more. An
// attempt from after the grace has yet to come by a clock that is wrong, and is as good as over.
func (m *Manager) maySendAgain(s *coatcheck.Session, now time.Time) bool {
	return now.Sub(s.Renewal.AttemptAt).Abs() < m.RotationGrace
}

// hold renews a lease until release is called, which ends it.
func hold(lease store.Lease) (release func()) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(refreshLease / 3)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			// Without it whoever comes next finds the attempt in the record, and does not
			// send the token; so a lease that is lost is no harm.
			renewing, cancel := context.WithTimeout(ctx, refreshLease/3)
			_ = lease.Renew(renewing, refreshLease)
			cancel()
		}
	}()
	return func() {
		stop()
		<-done
		releasing, cancel := context.WithTimeout(context.Background(), refreshLease/3)
		defer cancel()
		_ = lease.Release(releasing) // or it ends by itself
	}
}

// redeem gets new tokens for a session, unless its refresh token may have been used up: then
// it forgets that.
func (m *Manager) redeem(ctx context.Context, t ticket, live *Live) (*Live, error) {
	now := m.Now()
	if live.Renewal.Attempt == "" || m.maySendAgain(live.Session, now) {
		return m.refresh(ctx, t, live)
	}
	m.Logger.WarnContext(ctx, "a refresh token may have been used up by a node that stopped: it is not sent again",
		"session", live.Ref)
	m.CountRefresh(coatcheck.OutcomeUnknown.String())
	return m.lose(ctx, t, live, now.Add(lostPatience))
}

// refresh redeems the session's refresh token. The attempt is noted in the record before
// anything is sent, so that nobody sends the token a second time whatever becomes of this
// node (invariant 7), and every outcome is written there too, so that all nodes hear of it.
func (m *Manager) refresh(ctx context.Context, t ticket, live *Live) (*Live, error) {
	token, attemptID, began := live.Tokens.Refresh, rand.Text(), time.Now()
	again := live.Renewal.Attempt != "" // the one before may have had an effect
	noted, err := m.rewrite(ctx, t, func(s *coatcheck.Session) bool {
		if s.Tokens.Refresh != token || s.Renewal.Attempt != live.Renewal.Attempt {
			return false // somebody was faster
		}
		s.Renewal.Attempt = attemptID
		if !again {
			s.Renewal.AttemptAt = m.Now()
		}
		return true
	})
	if err != nil {
		if errors.Is(err, ErrInvalid) {
			return nil, err
		}
		// Whether it is noted is not known, but nothing was sent.
		return m.settle(ctx, t, live, attemptID, m.failed(coatcheck.OutcomeNone, again))
	}
	if noted.Renewal.Attempt != attemptID {
		return noted, nil
	}
	if time.Since(began) > refreshLease {
		// This node was stopped, and another one may have sent the token within the grace.
		return m.settle(ctx, t, noted, attemptID, m.failed(coatcheck.OutcomeNone, again))
	}
	next, err := m.Provider.Refresh(ctx, noted.Session)
	if err == nil {
		m.CountRefresh("ok")
		return m.keep(ctx, t, noted, attemptID, next)
	}
	outcome := outcomeOf(err)
	m.CountRefresh(outcome.String())
	m.renewal.refreshes.failed(outcome)
	level := slog.LevelWarn
	if outcome == coatcheck.OutcomeMisconfigured {
		level = slog.LevelError
	}
	m.Logger.LogAttrs(ctx, level, "no new tokens", slog.String("session", string(live.Ref)),
		slog.String("outcome", outcome.String()), slog.String("error", err.Error()))
	switch outcome {
	case coatcheck.OutcomeNone, coatcheck.OutcomeMisconfigured:
		return m.settle(ctx, t, noted, attemptID, m.failed(outcome, again))
	case coatcheck.OutcomeRefused:
		if err := m.end(ctx, holding{t, noted}, coatcheck.ReasonRefreshRefused); err != nil {
			return nil, err // whoever comes next finds the attempt
		}
		return nil, ErrInvalid
	default:
		if m.maySendAgain(noted.Session, m.Now()) {
			return m.settle(ctx, t, noted, attemptID, m.failed(coatcheck.OutcomeUnknown, again))
		}
		return m.lose(ctx, t, noted, m.Now())
	}
}

// outcomeOf is the outcome of a provider's error.
func outcomeOf(err error) coatcheck.Outcome {
	var e *coatcheck.RenewalError
	if errors.As(err, &e) {
		return e.Outcome
	}
	return coatcheck.OutcomeUnknown
}

// failed returns what an attempt without a result leaves in the session. again: it was not
// the first one with this token.
func (m *Manager) failed(outcome coatcheck.Outcome, again bool) func(*coatcheck.Session) {
	return func(s *coatcheck.Session) {
		r := &s.Renewal
		r.Failures++
		wait := min(minRetry<<min(r.Failures-1, 10), maxRetry)
		if outcome == coatcheck.OutcomeMisconfigured {
			wait = misconfiguredRetry
		}
		r.NotBefore = m.Now().Add(wait/2 + mathrand.N(wait/2+1))
		if outcome != coatcheck.OutcomeUnknown && !again {
			r.Attempt, r.AttemptAt = "", time.Time{}
		}
	}
}

// keep writes down the new tokens. If the session has ended meanwhile, or is ending, nobody can
// use them any more, and the provider is told so; but not where a new session has replaced it
// and may stand on the same grant (see granted).
func (m *Manager) keep(ctx context.Context, t ticket, before *Live, attemptID string, next *coatcheck.Session) (*Live, error) {
	live, err := m.settle(ctx, t, before, attemptID, func(s *coatcheck.Session) {
		s.Tokens, s.Identity = next.Tokens, next.Identity
		m.planRenewal(s)
	})
	m.renewal.refreshes.passed()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), refreshLimit) // settle may have outlived it
	defer cancel()
	reason, ending := m.ending(ctx, t)
	if (ending || errors.Is(err, ErrInvalid)) && (next.ProviderSID != "" || reason != coatcheck.ReasonReplaced) {
		m.revokeLater(m.grantOf(&Live{Session: next, Ref: before.Ref}))
	}
	return live, err
}

// ending tells whether somebody is ending a session whose record was just written, or has
// ended it since, and why, as far as that is known. Whoever does marks the entry, looks at the
// record for what is to be revoked, deletes it and removes the entry, in this order: so either
// they see what was written, or this sees that they are about it.
func (m *Manager) ending(ctx context.Context, t ticket) (reason coatcheck.Reason, ending bool) {
	e, err := m.listedAs(ctx, coatcheck.MakeRef(t.handle))
	switch {
	case err != nil:
		return "", false
	case e != nil:
		return e.Ending, e.Ending != ""
	}
	_, err = m.read(ctx, t)
	return m.readTombstone(ctx, t), errors.Is(err, ErrInvalid)
}

// settle writes down what became of an attempt. It goes on until the store takes it: what is
// not written is lost, and costs the person a sign-in. If the attempt is not noted, because
// the store has lost that, or is yet to do it, this is written all the same: what was noted
// comes too late then.
func (m *Manager) settle(ctx context.Context, t ticket, before *Live, attemptID string, change func(*coatcheck.Session)) (*Live, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveLimit)
	defer cancel()
	token := before.Tokens.Refresh
	for wait := minRetry / 10; ; wait = min(2*wait, saveAgain) {
		live, err := m.rewrite(ctx, t, func(s *coatcheck.Session) bool {
			if noted := s.Renewal.Attempt; noted != attemptID && noted != "" || s.Tokens.Refresh != token && !lost(s) {
				return false // another node goes on from here
			}
			s.Tokens.Refresh = token
			change(s)
			return true
		})
		if err == nil || errors.Is(err, ErrInvalid) {
			return live, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(wait):
		}
	}
}

// lose forgets a refresh token that must not be sent again. The attempt stays, to say why. The
// session does not end over it before the given time.
func (m *Manager) lose(ctx context.Context, t ticket, live *Live, end time.Time) (*Live, error) {
	attemptID := live.Renewal.Attempt
	return m.rewrite(ctx, t, func(s *coatcheck.Session) bool {
		if s.Renewal.Attempt != attemptID || s.Tokens.Refresh == "" {
			return false
		}
		s.Tokens.Refresh, s.Renewal.NotBefore = "", end
		return true
	})
}

// recheck asks whether the provider still vouches for the person. Where it takes the access
// token no more a refresh decides, in its own time: what keeps a session from one keeps it
// here too.
func (m *Manager) recheck(ctx context.Context, t ticket, live *Live) (*Live, error) {
	next, err := m.Provider.Check(ctx, live.Session)
	if err == nil {
		m.renewal.checks.passed()
		return m.rewrite(ctx, t, func(s *coatcheck.Session) bool {
			if !sameGrant(s, live.Session) {
				return false // what the provider said is older than that
			}
			s.Identity, s.Renewal.Checked = next.Identity, m.Now()
			return true
		})
	}
	outcome := outcomeOf(err)
	m.renewal.checks.failed(outcome)
	m.Logger.WarnContext(ctx, "the provider did not say whether it still vouches for somebody",
		"session", live.Ref, "outcome", outcome.String(), "error", err)
	if outcome != coatcheck.OutcomeRefused {
		return live, nil
	}
	now := m.Now()
	if live.Tokens.Refresh != "" {
		if live.Renewal.Failures > 0 && now.Before(live.Renewal.NotBefore) || !m.renewal.refreshes.enter(instantOf(time.Now())) {
			return live, nil
		}
		return m.redeem(ctx, t, live)
	}
	if lost(live.Session) && now.Before(live.Renewal.NotBefore) {
		return live, nil // a node that was cut off may still bring the new tokens
	}
	asked := live
	if live, err = m.read(ctx, t); err != nil {
		return nil, err
	}
	if !sameGrant(live.Session, asked.Session) {
		return live, nil
	}
	if err := m.end(ctx, holding{t, live}, coatcheck.ReasonRefreshRefused); err != nil {
		return nil, err
	}
	return nil, ErrInvalid
}

// sameGrant tells whether nothing has come from the provider, and no new tokens were asked of
// it, between two states of a session.
func sameGrant(s, before *coatcheck.Session) bool {
	return s.Tokens.Access == before.Tokens.Access && s.Renewal.Attempt == before.Renewal.Attempt &&
		s.Renewal.Checked.Equal(before.Renewal.Checked)
}
