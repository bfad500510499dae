package hall

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"gastown/internal/errs"
	"gastown/internal/town"
)

// SignatureHeader carries "sha256=" and the hex HMAC of a webhook's body, under
// the town's key in the vault (notify/<town id>).
const SignatureHeader = "Gastown-Signature"

const notifyTimeout = 30 * time.Second

// Messenger is the Notifier of a real server: a command, a webhook, or both.
type Messenger struct {
	Command      []string // run without a shell, the message on its standard input; empty for none
	Vault        Vault    // holds the keys that sign webhooks
	AllowPrivate bool     // webhooks may go to loopback and private addresses
}

// Message is what a command or a webhook gets as JSON.
type Message struct {
	ID      int64     `json:"id"` // of the notice; a repeat has the same
	Town    string    `json:"town"`
	TownID  string    `json:"town_id"`
	Owner   string    `json:"owner"`
	Kind    string    `json:"kind"`
	Subject string    `json:"subject"`
	Text    string    `json:"text"`
	At      time.Time `json:"at"`
}

// Notify delivers a notice to all that want it. It succeeds when all took it; a
// repeat after a failure may deliver twice.
func (m *Messenger) Notify(ctx context.Context, t TownRef, n town.Notice, to string) error {
	ctx, cancel := context.WithTimeout(ctx, notifyTimeout)
	defer cancel()
	body, err := json.Marshal(Message{ID: n.ID, Town: t.Name, TownID: t.ID, Owner: t.Owner, Kind: n.Kind, Subject: n.Subject,
		Text: n.Text, At: n.At.Time()})
	if err != nil {
		return errs.Wrap(errs.Internal, err, "encoding a notice")
	}
	var failed []error
	if len(m.Command) > 0 {
		failed = append(failed, m.run(ctx, body))
	}
	if to != "" {
		failed = append(failed, m.post(ctx, t, to, body))
	}
	return errors.Join(failed...)
}

func (m *Messenger) run(ctx context.Context, body []byte) error {
	cmd := exec.CommandContext(ctx, m.Command[0], m.Command[1:]...)
	cmd.Stdin = bytes.NewReader(body)
	cmd.WaitDelay = time.Second // a child that keeps the pipes open doesn't keep us
	return errs.Wrap(errs.Unavailable, cmd.Run(), "the notify command failed")
}

func (m *Messenger) post(ctx context.Context, t TownRef, to string, body []byte) error {
	u, err := url.Parse(to)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return errs.New(errs.Invalid, "notify.url is not an http or https URL")
	}
	key, err := m.key(t)
	if err != nil {
		return err
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(body) // never fails
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return errs.New(errs.Invalid, "notify.url can't be used")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(SignatureHeader, "sha256="+hex.EncodeToString(mac.Sum(nil)))
	resp, err := m.client().Do(req)
	if err != nil {
		// The URL may hold a secret in its path or query; only the cause is told.
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return errs.Wrap(errs.Unavailable, err, "the webhook at %s could not be reached", u.Host)
	}
	if err := resp.Body.Close(); err != nil {
		return errs.Wrap(errs.Unavailable, err, "the webhook at %s", u.Host)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return errs.New(errs.Unavailable, "the webhook at %s answered %d", u.Host, resp.StatusCode)
	}
	return nil
}

// client follows no redirect, uses no proxy, and looks at the address that it
// really connects to: a name may resolve to anything.
func (m *Messenger) client() *http.Client {
	d := &net.Dialer{Timeout: 10 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
		return m.allowed(address)
	}}
	return &http.Client{
		Transport:     &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (m *Messenger) allowed(address string) error {
	if m.AllowPrivate {
		return nil
	}
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return errs.New(errs.Forbidden, "%q is not an address", address)
	}
	ip := ap.Addr().Unmap()
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() || shared(ip) {
		return errs.New(errs.Forbidden, "webhooks may not go to %s", ip).WithHint("serve --notify-private allows private addresses")
	}
	return nil
}

// shared reports address space that is global by the letter but leads inwards:
// carrier-grade NAT, NAT64, site-local addresses, and IPv4 in 6to4, in Teredo and in IPv6 itself.
func shared(ip netip.Addr) bool {
	for _, p := range []string{"100.64.0.0/10", "192.0.0.0/24", "198.18.0.0/15", "240.0.0.0/4", "0.0.0.0/8", "192.88.99.0/24",
		"64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96", "fec0::/10"} {
		if netip.MustParsePrefix(p).Contains(ip) {
			return true
		}
	}
	return false
}

func notifyKey(t TownRef) string { return "notify/" + t.ID }

// key reads the town's signing key, making it the first time.
func (m *Messenger) key(t TownRef) ([]byte, error) {
	if m.Vault == nil {
		return nil, errs.New(errs.Unavailable, "there is no vault for the key that signs webhooks")
	}
	key, err := m.Vault.Get(notifyKey(t))
	if errs.Is(err, errs.NotFound) {
		key = []byte(strings.ToLower(rand.Text()))
		err = m.Vault.Put(notifyKey(t), key)
	}
	return key, err
}
