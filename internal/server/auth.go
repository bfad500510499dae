package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"gastown/internal/api"
	"gastown/internal/errs"
)

const (
	adminTokenFile = "admin.token"
	minAdminToken  = 16
	maxUser        = 64
)

// LoadOrCreateAdminToken reads DIR/admin.token, or makes it (0600) with 256
// random bits. created says that it did. One that others may read is refused: it
// is everything to whoever has it.
func LoadOrCreateAdminToken(dir string) (token string, created bool, err error) {
	path := filepath.Join(dir, adminTokenFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return createAdminToken(dir, path)
	}
	if err != nil {
		return "", false, errs.Wrap(errs.Internal, err, "reading the admin token")
	}
	if st, err := os.Stat(path); err == nil && st.Mode().Perm()&0o077 != 0 {
		return "", false, errs.New(errs.Forbidden, "the admin token in %s may be read by others (mode %04o)", path, st.Mode().Perm()).
			WithHint("chmod 600 %s; if others may have read it, remove the file instead: the next start makes a new one", path)
	}
	token = strings.TrimSpace(string(b))
	if len(token) < minAdminToken {
		return "", false, errs.New(errs.Invalid, "%s holds no usable token", path).WithHint("remove the file; the next start makes a new one")
	}
	return token, false, nil
}

// createAdminToken writes the token whole or not at all. A second process that
// is faster wins, and its token is returned.
func createAdminToken(dir, path string) (string, bool, error) {
	var raw [32]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return "", false, errs.Wrap(errs.Internal, err, "making the admin token")
	}
	token := hex.EncodeToString(raw[:])
	f, err := os.CreateTemp(dir, ".admin-token-*") // 0600
	if err != nil {
		return "", false, errs.Wrap(errs.Internal, err, "storing the admin token")
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(token + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return "", false, errs.Wrap(errs.Internal, err, "storing the admin token")
	}
	if err := os.Link(f.Name(), path); errors.Is(err, fs.ErrExist) {
		return LoadOrCreateAdminToken(dir)
	} else if err != nil {
		return "", false, errs.Wrap(errs.Internal, err, "storing the admin token")
	}
	return token, true, nil
}

// bearer returns the token of a request, "" when there is none.
func bearer(r *http.Request) string {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// admin reports whether the request carries the admin token. Hashes are
// compared, so that not even the token's length shows.
func (s *Server) admin(r *http.Request) bool {
	got := sha256.Sum256([]byte(bearer(r)))
	return subtle.ConstantTimeCompare(got[:], s.adminHash[:]) == 1
}

func errNoToken() error {
	return errs.New(errs.Unauthorized, "no valid token").
		WithHint("send Authorization: Bearer TOKEN; the token is in the file admin.token of the server's data directory")
}

type ctxKey int

const (
	keyCall ctxKey = iota
)

// call is what the middleware knows of a request.
type call struct {
	who  string // for the ledger
	body []byte
}

func callOf(ctx context.Context) *call {
	if c, ok := ctx.Value(keyCall).(*call); ok {
		return c
	}
	return &call{who: "admin"}
}

// who names the caller: the display name that they gave, else "admin". It is
// not proof of anything: there is one token.
func who(r *http.Request) string {
	name := strings.Map(func(c rune) rune {
		if unicode.IsControl(c) || c == unicode.ReplacementChar || !unicode.IsPrint(c) {
			return -1
		}
		return c
	}, strings.ToValidUTF8(r.Header.Get(api.HeaderUser), ""))
	// The ledger calls the rules "town", and agents rig/name.
	name = strings.ReplaceAll(strings.TrimSpace(name), "/", "-")
	if name == "" || strings.EqualFold(name, "town") {
		return "admin"
	}
	if len(name) > maxUser {
		name = strings.ToValidUTF8(name[:maxUser], "")
	}
	return name
}
