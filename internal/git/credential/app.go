package credential

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"gastown/internal/errs"
)

const (
	// beforeEnd is how long before its end a token of an App is made anew: a push
	// begun with it may take its time.
	beforeEnd = 10 * time.Minute
	// asLong is how long a token is kept whose end GitHub did not say.
	asLong = 10 * time.Minute
	// jwtAge and jwtLife bound the proof that a token is asked with; GitHub takes
	// at most 10 minutes, and none from its own future.
	jwtAge     = time.Minute
	jwtLife    = 8 * time.Minute
	askTimeout = 30 * time.Second
	maxAnswer  = 1 << 20
	maxKept    = 1000 // tokens in memory
)

// Logins turns credentials into users and passwords. Tokens of GitHub Apps are kept
// in memory until shortly before their end: they can be made again. It is safe for
// concurrent use.
type Logins struct {
	client *http.Client
	now    func() time.Time

	mu     sync.Mutex // guards tokens
	tokens map[[sha256.Size]byte]appToken
}

type appToken struct {
	value string
	until time.Time // when it is made anew
}

// NewLogins makes an empty Logins. now is the clock.
func NewLogins(now func() time.Time) *Logins {
	return &Logins{now: now, tokens: map[[sha256.Size]byte]appToken{},
		// A redirect would carry the proof to another host.
		client: &http.Client{Timeout: askTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// Login returns user and password for https. It asks GitHub for a token where
// that is needed: errs.Forbidden when the App is refused, errs.Unavailable when
// GitHub can't be asked.
func (l *Logins) Login(ctx context.Context, c Credential) (user, password string, err error) {
	switch c.Kind {
	case Token:
		if c.Username != "" {
			return c.Username, c.Secret, nil
		}
		return tokenUser, c.Secret, nil
	case Basic:
		return c.Username, c.Secret, nil
	case GitHubApp:
		password, err = l.appToken(ctx, c)
		return tokenUser, password, err
	case SSHKey:
	}
	return "", "", errs.New(errs.Invalid, "a credential of the kind %.40q is no login for https", string(c.Kind))
}

// Forget drops the token of an App that upstream refused, so that the next Login
// makes another.
func (l *Logins) Forget(c Credential) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.tokens, c.hash())
}

func (c Credential) hash() [sha256.Size]byte {
	return sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q", c.api(), c.AppID, c.InstallationID, c.Secret))
}

func (l *Logins) appToken(ctx context.Context, c Credential) (string, error) {
	l.mu.Lock()
	kept, ok := l.tokens[c.hash()]
	l.mu.Unlock()
	if ok && l.now().Before(kept.until) {
		return kept.value, nil
	}
	fresh, err := l.ask(ctx, c)
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.tokens) >= maxKept {
		clear(l.tokens)
	}
	l.tokens[c.hash()] = fresh
	return fresh.value, nil
}

// proof is the JWT by which an App shows who it is.
func (l *Logins) proof(c Credential) (string, error) {
	key, err := c.rsaKey()
	if err != nil {
		return "", err
	}
	now := l.now()
	t := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.RegisteredClaims{Issuer: c.AppID,
		IssuedAt: jwt.NewNumericDate(now.Add(-jwtAge)), ExpiresAt: jwt.NewNumericDate(now.Add(jwtLife))})
	s, err := t.SignedString(key)
	return s, errs.Wrap(errs.Internal, err, "signing the App's proof")
}

// ask has GitHub make a token of the App's installation.
func (l *Logins) ask(ctx context.Context, c Credential) (appToken, error) {
	proof, err := l.proof(c)
	if err != nil {
		return appToken{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.api()+"/app/installations/"+url.PathEscape(c.InstallationID)+"/access_tokens", nil)
	if err != nil {
		return appToken{}, errs.New(errs.Invalid, "the address of the GitHub API can't be used")
	}
	req.Header.Set("Authorization", "Bearer "+proof)
	req.Header.Set("Accept", "application/vnd.github+json")
	req.Header.Set("X-GitHub-Api-Version", "2022-11-28")
	req.Header.Set("User-Agent", "gastown")
	res, err := l.client.Do(req)
	if err != nil {
		return appToken{}, errs.Wrap(errs.Unavailable, err, "asking GitHub for a token of the App")
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return appToken{}, errs.Wrap(errs.Unavailable, err, "asking GitHub for a token of the App")
	}
	if err := refusal(res.StatusCode, text); err != nil {
		return appToken{}, err
	}
	var got struct {
		Token     string    `json:"token"`
		ExpiresAt time.Time `json:"expires_at"`
	}
	if err := json.Unmarshal(text, &got); err != nil || got.Token == "" || len(got.Token) > MaxSecret {
		return appToken{}, errs.New(errs.Unavailable, "GitHub's answer holds no token of the App")
	}
	until := got.ExpiresAt.Add(-beforeEnd)
	if got.ExpiresAt.IsZero() {
		until = l.now().Add(asLong)
	}
	return appToken{got.Token, until}, nil
}

// refusal explains an answer that is no token.
func refusal(status int, body []byte) error {
	if status == http.StatusCreated || status == http.StatusOK {
		return nil
	}
	var said struct {
		Message string `json:"message"`
	}
	_ = json.Unmarshal(body, &said) // without a message the status has to do
	text := fmt.Sprintf("GitHub answers %d %.200q to the App", status, said.Message)
	switch {
	case status == http.StatusUnauthorized:
		return errs.New(errs.Forbidden, "%s", text).WithHint("check that the app id and the private key belong together, and this machine's clock")
	case status == http.StatusForbidden, status == http.StatusNotFound:
		return errs.New(errs.Forbidden, "%s", text).WithHint("check the installation id, and that the App is still installed and not suspended")
	case status >= 300 && status < 400:
		return errs.New(errs.Forbidden, "%s: a redirect, which is not followed with a credential", text).WithHint("give the address that it leads to with --github-api")
	}
	return errs.New(errs.Unavailable, "%s", text)
}
