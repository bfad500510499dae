package gateway

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// ModelLimits hears what providers say of their limits. Its methods are called
// before an answer goes on to the agent and must not block.
type ModelLimits interface {
	// ModelLimited says that a provider refused a request because of a rate limit
	// or a quota. wait is how long that lasts as the provider says, or NotStated.
	ModelLimited(g ModelGrant, provider string, wait time.Duration, reason string)
	// ModelWorks says that a provider answered a request whose grant was Limited.
	ModelWorks(g ModelGrant, provider string)
}

// NotStated is the wait of a limit of which the provider does not say how long it lasts.
const NotStated time.Duration = -1

// longestWait bounds what a provider may state; the town bounds it further.
const longestWait = 366 * 24 * time.Hour

// askedKey finds in a request's context who asked whom.
type askedKey struct{}

type asked struct {
	grant    ModelGrant
	provider Provider
	paid     bool     // the answer costs tokens
	sent     *request // its body
	share    Share    // of a budget; nil: none is needed
}

// answered looks at an answer before it goes on.
func (m *model) answered(resp *http.Response) error {
	if err := cleanResponse(resp); err != nil {
		return err
	}
	a, ok := resp.Request.Context().Value(askedKey{}).(asked)
	if !ok {
		return nil
	}
	m.meter(resp, a)
	wait, limited := limitOf(resp, time.Now())
	switch {
	case limited:
		if m.cfg.WaitHeader != "" {
			ms := int64(-1)
			if wait != NotStated {
				ms = wait.Milliseconds()
			}
			resp.Header.Set(m.cfg.WaitHeader, strconv.FormatInt(ms, 10))
		}
		if m.cfg.Limits != nil {
			m.cfg.Limits.ModelLimited(a.grant, a.provider.Name, wait, "the provider answered with status "+strconv.Itoa(resp.StatusCode))
		}
	case a.grant.Limited && resp.StatusCode < 300 && m.cfg.Limits != nil:
		m.cfg.Limits.ModelWorks(a.grant, a.provider.Name)
	}
	return nil
}

// meter has the usage of an answer read while it passes.
func (m *model) meter(resp *http.Response, a asked) {
	if m.cfg.Meter == nil || resp.StatusCode >= 300 || !a.paid {
		return
	}
	u := newUsageReader(resp.Body, resp.Header.Get("Content-Type"), func(model string, t Tokens, known bool) {
		if !known {
			m.log.Warn("a model's answer says nothing of its usage: it is estimated", "provider", a.provider.Name, "model", model, "run", a.grant.Run, "tokens", t.Total())
		}
		m.used(a, model, t)
	})
	u.sent = a.sent
	resp.Body = u
}

func (m *model) used(a asked, model string, t Tokens) {
	if a.share != nil {
		a.share.Spent(t.Total(), a.provider.priceOf(model).Of(t), a.provider.priced(model))
		return
	}
	m.cfg.Meter.ModelUsed(a.grant, a.provider.Name, model, t, a.provider.priceOf(model).Of(t), a.provider.priced(model))
}

// unheard counts a request whose sender left before an answer began: once the
// provider has all of it, it is paid for.
func (m *model) unheard(a asked) {
	if m.cfg.Meter == nil || !a.paid || !a.sent.whole.Load() {
		return
	}
	m.used(a, "", Tokens{Input: clampTokens(a.sent.input())})
}

// statusOverloaded is what some providers answer when they have too much to do.
const statusOverloaded = 529

// limitOf reports whether an answer means that its sender is to wait, and how
// long. An unavailable server without a time is broken, not limited.
func limitOf(resp *http.Response, now time.Time) (time.Duration, bool) {
	wait, stated := statedWait(resp.Header, now)
	switch resp.StatusCode {
	case http.StatusTooManyRequests, statusOverloaded:
	case http.StatusServiceUnavailable:
		if !stated {
			return 0, false
		}
	default:
		return 0, false
	}
	if !stated {
		wait = NotStated
	}
	return wait, true
}

// statedWait reads how long to wait from an answer: in milliseconds, in seconds,
// or until a date, which is compared with the answer's own.
func statedWait(h http.Header, now time.Time) (time.Duration, bool) {
	if wait, ok := number(h.Get("Retry-After-Ms"), time.Millisecond); ok {
		return wait, true
	}
	after := strings.TrimSpace(h.Get("Retry-After"))
	if wait, ok := number(after, time.Second); ok {
		return wait, true
	}
	at, err := http.ParseTime(after)
	if err != nil {
		return 0, false
	}
	if sent, err := http.ParseTime(h.Get("Date")); err == nil {
		now = sent
	}
	return min(max(at.Sub(now), 0), longestWait), true
}

// number reads a number of units that is not negative, with or without a fraction.
func number(s string, unit time.Duration) (time.Duration, bool) {
	n, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil || !(n >= 0) || strings.ContainsAny(s, "xXpPeEiInN_+") {
		return 0, false
	}
	if n > float64(longestWait/unit) {
		return longestWait, true
	}
	return time.Duration(n * float64(unit)), true
}
