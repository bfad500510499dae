package gateway

import (
	"math"
	"net/http"
	"strings"
	"testing"
	"time"
)

// heard records what a gateway says of limits.
type heard chan string

func (h heard) ModelLimited(g ModelGrant, provider string, wait time.Duration, reason string) {
	text := wait.String()
	if wait == NotStated {
		text = "not stated"
	}
	h <- strings.Join([]string{"limited", g.Town, g.Run, provider, text, reason}, "|")
}

func (h heard) ModelWorks(g ModelGrant, provider string) {
	h <- strings.Join([]string{"works", g.Town, g.Run, provider}, "|")
}

func TestLimitsOfAProviderAreToldAndPassedOn(t *testing.T) {
	t.Parallel()
	date := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for name, test := range map[string]struct {
		status  int
		headers []string
		heard   string // "" for nothing
		wait    string // the header for the runner
	}{
		"seconds":             {429, []string{"Retry-After", "7"}, "7s", "7000"},
		"many seconds":        {429, []string{"Retry-After", "86400"}, "24h0m0s", "86400000"},
		"now":                 {429, []string{"Retry-After", "0"}, "0s", "0"},
		"a date":              {429, []string{"Retry-After", date.Add(90 * time.Minute).Format(http.TimeFormat), "Date", date.Format(http.TimeFormat)}, "1h30m0s", "5400000"},
		"a date that is past": {429, []string{"Retry-After", date.Add(-time.Hour).Format(http.TimeFormat), "Date", date.Format(http.TimeFormat)}, "0s", "0"},
		"milliseconds":        {429, []string{"Retry-After-Ms", "1500", "Retry-After", "99"}, "1.5s", "1500"},
		"nothing stated":      {429, nil, "not stated", "-1"},
		"nonsense stated":     {429, []string{"Retry-After", "soon"}, "not stated", "-1"},
		"overloaded":          {529, nil, "not stated", "-1"},
		"unavailable until":   {503, []string{"Retry-After", "60"}, "1m0s", "60000"},
		"unavailable":         {503, nil, "", ""},
		"broken":              {500, []string{"Retry-After", "60"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := make(heard, 1)
			base, _ := newLimitLab(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Gastown-Wait-Ms", "1") // not the provider's to say
				for i := 0; i < len(test.headers); i += 2 {
					w.Header().Set(test.headers[i], test.headers[i+1])
				}
				w.WriteHeader(test.status)
			}, h)
			res := post(t, base+"house/chat/completions", strings.NewReader("{}"))
			if res.StatusCode != test.status || res.Header.Get("Gastown-Wait-Ms") != test.wait {
				t.Errorf("status %d, wait %q", res.StatusCode, res.Header.Get("Gastown-Wait-Ms"))
			}
			for i := 0; i < len(test.headers); i += 2 {
				if got := res.Header.Get(test.headers[i]); got != test.headers[i+1] {
					t.Errorf("%s: %q did not go through", test.headers[i], got)
				}
			}
			want, got := "", ""
			if test.heard != "" {
				want = "limited|t1|web-aaaaa.1|house|" + test.heard + "|the provider answered with status " + strings.Fields(res.Status)[0]
			}
			select {
			case got = <-h: // it was said before the answer went on
			default:
			}
			if got != want {
				t.Errorf("heard %q, want %q", got, want)
			}
		})
	}
}

// An agent paces itself by what its provider says of its limits, at an answer
// and at a refusal; who pays for it is none of its business.
func TestAProvidersOwnHeadersOnLimitsArePassedOn(t *testing.T) {
	t.Parallel()
	passed := map[string]string{
		"Anthropic-Ratelimit-Requests-Remaining": "49", "Anthropic-Ratelimit-Tokens-Reset": "2026-03-01T12:00:00Z",
		"X-Ratelimit-Remaining-Requests": "99", "X-Ratelimit-Reset-Tokens": "6m0s", "Retry-After": "3",
	}
	for _, status := range []int{http.StatusOK, http.StatusTooManyRequests} {
		base, _ := newLimitLab(t, func(w http.ResponseWriter, _ *http.Request) {
			for name, value := range passed {
				w.Header().Set(name, value)
			}
			w.Header().Set("Openai-Organization", "acme")
			w.Header().Set("Set-Cookie", "account=1")
			w.WriteHeader(status)
		}, make(heard, 1))
		res := post(t, base+"house/chat/completions", strings.NewReader("{}"))
		if res.StatusCode != status {
			t.Errorf("status %d, want %d", res.StatusCode, status)
		}
		for name, want := range passed {
			if got := res.Header.Get(name); got != want {
				t.Errorf("with status %d, %s is %q, want %q", status, name, got, want)
			}
		}
		for _, name := range []string{"Openai-Organization", "Set-Cookie"} {
			if got := res.Header.Get(name); got != "" {
				t.Errorf("with status %d, %s is %q", status, name, got)
			}
		}
	}
}

func TestAnAnswerAfterALimitIsTold(t *testing.T) {
	t.Parallel()
	h := make(heard, 1)
	base, _ := newLimitLab(t, func(http.ResponseWriter, *http.Request) {}, h)
	post(t, base+"house/chat/completions", strings.NewReader("{}"))
	if got := <-h; got != "works|t1|web-aaaaa.1|house" {
		t.Errorf("heard %q", got)
	}
}

func FuzzStatedWait(f *testing.F) {
	for _, s := range []string{"", "0", "7", "-1", "1e9", "NaN", "Inf", "0x10", "1_0", "99999999999999999999999", "0.5", "1.", ".", " 5 ", "Sun, 01 Mar 2026 12:00:00 GMT",
		"Sunday, 01-Mar-26 12:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"} {
		f.Add(s, s, s)
	}
	f.Fuzz(func(t *testing.T, ms, after, date string) {
		h := http.Header{"Retry-After-Ms": {ms}, "Retry-After": {after}, "Date": {date}}
		wait, ok := statedWait(h, time.UnixMilli(1_772_366_400_000))
		if wait < 0 || wait > longestWait || !ok && wait != 0 || wait > math.MaxInt64/2 {
			t.Fatalf("%q %q %q: %s %v", ms, after, date, wait, ok)
		}
	})
}
