package devprovider

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// The two kinds of token that the key signs, told apart by their "typ" so that
// neither passes for the other (RFC 8725 §3.11).
const (
	typIDToken     = "JWT"
	typAccessToken = "at+jwt" // RFC 9068 §2.1
)

// keys is the provider's signing key: ES256, made at start, gone at the end.
type keys struct {
	public  jose.JSONWebKey
	private jose.JSONWebKey
}

func newKeys() (keys, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return keys{}, fmt.Errorf("make a signing key: %w", err)
	}
	private := jose.JSONWebKey{Key: key, Algorithm: string(jose.ES256), Use: "sig"}
	thumbprint, err := private.Thumbprint(crypto.SHA256)
	if err != nil {
		return keys{}, fmt.Errorf("name the signing key: %w", err)
	}
	private.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	return keys{public: private.Public(), private: private}, nil
}

func (k keys) sign(typ string, claims any) (string, error) {
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: k.private},
		(&jose.SignerOptions{}).WithType(jose.ContentType(typ)))
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		return "", fmt.Errorf("sign a token: %w", err)
	}
	return token, nil
}

// verify decodes the claims of a token of this kind that this key signed. Whether it
// has expired is for the caller to judge.
func (k keys) verify(typ, token string, claims any) error {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return fmt.Errorf("read a token: %w", err)
	}
	if got := parsed.Headers[0].ExtraHeaders[jose.HeaderType]; got != typ {
		return fmt.Errorf("read a token: of type %v, not %s", got, typ)
	}
	if err := parsed.Claims(k.public, claims); err != nil {
		return fmt.Errorf("read a token: %w", err)
	}
	return nil
}

// atHash returns the at_hash of an access token in an ES256 ID token: the left half of
// its SHA-256 (OpenID Connect Core 1.0 §3.1.3.6).
func atHash(accessToken string) string {
	sum := sha256.Sum256([]byte(accessToken))
	return base64.RawURLEncoding.EncodeToString(sum[:len(sum)/2])
}
