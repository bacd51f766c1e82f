package devprovider

import (
	"net/http"

	"github.com/go-jose/go-jose/v4"
)

// metadata is the discovery document (OpenID Connect Discovery 1.0 §3). RS256, which
// Discovery wants every provider to list, is left out: one key, one algorithm
// (RFC 8725 §3.1).
type metadata struct {
	Issuer                string   `json:"issuer"`
	AuthorizationEndpoint string   `json:"authorization_endpoint"`
	TokenEndpoint         string   `json:"token_endpoint"`
	UserinfoEndpoint      string   `json:"userinfo_endpoint"`
	JWKSURI               string   `json:"jwks_uri"`
	EndSessionEndpoint    string   `json:"end_session_endpoint"`
	Scopes                []string `json:"scopes_supported"`
	ResponseTypes         []string `json:"response_types_supported"`
	ResponseModes         []string `json:"response_modes_supported"`
	GrantTypes            []string `json:"grant_types_supported"`
	SubjectTypes          []string `json:"subject_types_supported"`
	IDTokenAlgs           []string `json:"id_token_signing_alg_values_supported"`
	TokenAuthMethods      []string `json:"token_endpoint_auth_methods_supported"`
	Claims                []string `json:"claims_supported"`
	Prompts               []string `json:"prompt_values_supported"`
	ChallengeMethods      []string `json:"code_challenge_methods_supported"`               // RFC 8414 §2
	ResponseIss           bool     `json:"authorization_response_iss_parameter_supported"` // RFC 9207 §3
	RequestURI            bool     `json:"request_uri_parameter_supported"`                // absent means true
}

func (p *Provider) discovery(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, metadata{
		Issuer:                p.issuer,
		AuthorizationEndpoint: p.issuer + authorizePath,
		TokenEndpoint:         p.issuer + tokenPath,
		UserinfoEndpoint:      p.issuer + userinfoPath,
		JWKSURI:               p.issuer + jwksPath,
		EndSessionEndpoint:    p.issuer + endSessionPath,
		Scopes:                scopes,
		ResponseTypes:         []string{"code"},
		ResponseModes:         []string{"query"},
		GrantTypes:            []string{"authorization_code", "refresh_token"},
		SubjectTypes:          []string{"public"},
		IDTokenAlgs:           []string{string(jose.ES256)},
		TokenAuthMethods:      []string{"client_secret_basic", "client_secret_post"},
		Claims: []string{
			"iss", "sub", "aud", "exp", "iat", "auth_time", "nonce", "at_hash", "sid",
			"name", "preferred_username", "email", "email_verified", "groups",
		},
		Prompts:          prompts,
		ChallengeMethods: []string{"S256"},
		ResponseIss:      true,
		RequestURI:       false,
	})
}

func (p *Provider) jwks(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{p.keys.public}})
}
