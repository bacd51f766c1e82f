package oidc

import (
	"io"
	"net/http"
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coatcheck/coatcheck"
)

// RFC 7009
func TestRevoke(t *testing.T) {
	for _, c := range []struct {
		name     string
		metadata object
		status   int
		body     string
		sent     bool
		post     bool
		fails    bool
		want     coatcheck.Outcome
	}{
		{name: "revoked", status: 200, sent: true},
		{name: "no content", status: 204, sent: true},
		{name: "not offered", metadata: object{"revocation_endpoint": nil}},
		{name: "kind not supported", status: 400, body: `{"error":"unsupported_token_type"}`, sent: true},
		{name: "client refused", status: 401, body: `{"error":"invalid_client"}`, sent: true, fails: true, want: coatcheck.OutcomeMisconfigured},
		{name: "later", status: 503, sent: true, fails: true, want: coatcheck.OutcomeNone},
		{name: "not found", status: 404, body: "canary", sent: true, fails: true, want: coatcheck.OutcomeNone},
		{name: "told what was sent", status: 400, body: `{"error":"x","error_description":"token-canary"}`, sent: true, fails: true, want: coatcheck.OutcomeNone},
		{
			name: "authenticates as at the token endpoint", status: 200, sent: true, post: true,
			metadata: object{"token_endpoint_auth_methods_supported": []string{"client_secret_post"}},
		},
		{
			name: "authenticates as its own metadata says", status: 200, sent: true, post: true,
			metadata: object{"revocation_endpoint_auth_methods_supported": []string{"client_secret_post"}},
		},
		{
			name: "no way to authenticate", fails: true, want: coatcheck.OutcomeMisconfigured,
			metadata: object{"revocation_endpoint_auth_methods_supported": []string{"private_key_jwt"}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := newHostile(t)
			i.metadata = c.metadata
			p, _ := newParty(t, i.URL, nil)
			if err := p.Discover(t.Context()); err != nil {
				t.Fatal(err)
			}
			i.set(func() {
				i.onRevoke = func(w http.ResponseWriter, _ *http.Request) {
					w.WriteHeader(c.status)
					_, _ = io.WriteString(w, c.body)
				}
			})
			err := p.Revoke(t.Context(), "token-canary", coatcheck.RefreshToken)
			if c.fails {
				wantOutcome(t, err, c.want)
			} else if err != nil {
				t.Error(err)
			}
			if !c.sent {
				if len(i.revocations) != 0 {
					t.Errorf("sent %v", i.revocations)
				}
				return
			}
			if len(i.revocations) != 1 {
				t.Fatalf("%d requests, want 1", len(i.revocations))
			}
			form := url.Values{"token": {"token-canary"}, "token_type_hint": {"refresh_token"}}
			if c.post {
				form.Set("client_id", "client")
				form.Set("client_secret", "s3cr&t canary")
			}
			if diff := cmp.Diff(form, i.revocations[0].form); diff != "" {
				t.Error(diff)
			}
			if i.revocations[0].basic == c.post {
				t.Errorf("basic authentication: %v", i.revocations[0].basic)
			}
		})
	}
}
