package server

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"gastown/internal/errs"
	"gastown/internal/hall"
	"gastown/internal/town"
)

const (
	keyBytes     = 32
	tokenLife    = 8 * time.Hour
	tokenLeeway  = 24 * time.Hour // after expiry a token can still be exchanged
	scopeSandbox = "sandbox"
)

// Signer makes and checks sandbox tokens. The same town, generation and issue
// time give the same bytes on every server that shares the key, so a token is
// never stored. A Signer is safe for concurrent use.
type Signer struct{ key []byte }

var _ hall.Tokens = (*Signer)(nil)

// NewSigner makes a Signer with a key of 32 bytes.
func NewSigner(key []byte) (*Signer, error) {
	if len(key) != keyBytes {
		return nil, errs.New(errs.Internal, "the signing key has %d bytes instead of %d", len(key), keyBytes)
	}
	return &Signer{key: append([]byte(nil), key...)}, nil
}

// SigningKey is the name of the key of sandbox tokens in the vault; it is made when
// it is missing.
const SigningKey = "signing-key"

// LoadSigner makes a Signer with the vault's key, which it creates at first.
func LoadSigner(v Secrets) (*Signer, error) {
	key, err := v.Get(SigningKey)
	if errs.Is(err, errs.NotFound) {
		fresh := make([]byte, keyBytes)
		if _, err := rand.Read(fresh); err != nil {
			return nil, errs.Wrap(errs.Internal, err, "making the signing key")
		}
		if err := v.Put(SigningKey, fresh); err != nil {
			return nil, err
		}
		// Read again: another server on the same vault may have been first.
		key, err = v.Get(SigningKey)
	}
	if err != nil {
		return nil, err
	}
	return NewSigner(key)
}

// claims is what a sandbox token says.
type claims struct {
	Town       string `json:"town"`
	Owner      string `json:"owner"`
	Generation int64  `json:"generation"`
	Scope      string `json:"scope"`
	jwt.RegisteredClaims
}

// Token returns the token of a sandbox, issued at the town's TokenAt and valid
// for 8 hours.
func (s *Signer) Token(townID, owner string, generation int64, at town.Time) string {
	c := claims{Town: townID, Owner: owner, Generation: generation, Scope: scopeSandbox,
		RegisteredClaims: jwt.RegisteredClaims{
			IssuedAt:  jwt.NewNumericDate(at.Time()),
			ExpiresAt: jwt.NewNumericDate(at.Time().Add(tokenLife)),
		}}
	signed, err := jwt.NewWithClaims(jwt.SigningMethodHS256, c).SignedString(s.key)
	if err != nil {
		panic(err) // HMAC over a struct of strings and numbers
	}
	return signed
}

// verify checks a token at now; expired ones pass for leeway more.
func (s *Signer) verify(token string, now time.Time, leeway time.Duration) (claims, error) {
	var c claims
	_, err := jwt.ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return s.key, nil },
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}),
		jwt.WithExpirationRequired(),
		jwt.WithLeeway(leeway),
		jwt.WithTimeFunc(func() time.Time { return now }))
	if err != nil || c.Scope != scopeSandbox || c.Town == "" || c.Generation <= 0 {
		// The library's text may quote parts of the token.
		return claims{}, errs.New(errs.Unauthorized, "the sandbox token is not valid or has expired")
	}
	return c, nil
}

// Sandbox is Token in the form that the hall asks for.
func (s *Signer) Sandbox(_ context.Context, t hall.TownRef, generation int64, at town.Time) ([]byte, error) {
	return []byte(s.Token(t.ID, t.Owner, generation, at)), nil
}
