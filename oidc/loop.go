package oidc

import (
	"errors"
	"net/http"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/coatcheck/coatcheck"
	"github.com/coatcheck/coatcheck/cookie"
	"github.com/coatcheck/coatcheck/seal"
)

// If the nodes share their keys but not their store, a browser goes round in circles:
// one node signs it in, the next one does not know the session and sends it back to
// the provider, which remembers it and returns it at once. A cookie counts.
const (
	loopWindow  = 30 * time.Second
	loopSignIns = 3
)

var errLoop = errors.New("third sign-in within 30 s and no request was served in between: the node that gets the next request does not know the session; " +
	"all nodes must use the same session store")

func (p *RelyingParty) signInsPlace() seal.Place {
	return seal.Place{Purpose: "signins", Tenant: p.Tenant, Cookie: p.signInsName}
}

// Completed counts a sign-in of somebody who may sign in, before the session begins; h
// is the response's header. It returns CodeSignInLoop if this is the third within 30 s
// with no request served in between, and then forgets them all, so that the next try
// starts at zero.
func (p *RelyingParty) Completed(h, request http.Header) error {
	const op = "oidc.loop"
	now := p.Now().UnixMilli()
	times := []int64{now}
	for _, t := range p.signIns(request) {
		if now-t < loopWindow.Milliseconds() {
			times = append(times, t)
		}
	}
	if len(times) >= loopSignIns {
		p.Jar.Expire(h, p.signInsName)
		return coatcheck.E(coatcheck.CodeSignInLoop, op, errLoop)
	}
	plain, err := cbor.Marshal(times)
	if err != nil {
		return coatcheck.E(coatcheck.CodeInternal, op, err)
	}
	value, err := p.Ring.SealValue(p.signInsPlace(), plain)
	if err != nil {
		return coatcheck.E(coatcheck.CodeInternal, op, err)
	}
	p.Jar.Set(h, p.signInsName, value, loopWindow)
	return nil
}

// signIns returns when the latest sign-ins were completed, in Unix milliseconds. A
// cookie that can't be read counts nothing: it only ever helps a person to understand.
func (p *RelyingParty) signIns(request http.Header) []int64 {
	for name, value := range cookie.Each(request) {
		if name != p.signInsName {
			continue
		}
		var times []int64
		plain, err := p.Ring.OpenValue(p.signInsPlace(), value)
		if err == nil && strict.Unmarshal(plain, &times) == nil {
			return times
		}
	}
	return nil
}

// Served says that a signed-in request found its session here. The completed sign-ins
// are forgotten; a request without their cookie costs one look at its cookies.
func (p *RelyingParty) Served(h http.Header, r *http.Request) {
	for name := range cookie.Each(r.Header) {
		if name == p.signInsName {
			p.Jar.Expire(h, name)
			return
		}
	}
}
