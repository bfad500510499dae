package scrub

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"
)

const (
	secret = `p/4s+s"w\ord=<ü>%` // everything that is escaped somewhere
	simple = "AB12CD34EF56GH78IJ90KL"
	pem    = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\nAAAAAAAAABAAAAMwAAAAtzc2gtZW\n-----END OPENSSH PRIVATE KEY-----\n"
)

func known(values ...string) *Set {
	s := &Set{}
	s.Put("test", values...)
	return s
}

func TestKnownValuesAreFoundHoweverTheyAreWritten(t *testing.T) {
	t.Parallel()
	quoted, err := json.Marshal(secret)
	if err != nil {
		t.Fatal(err)
	}
	twice, err := json.Marshal(string(quoted))
	if err != nil {
		t.Fatal(err)
	}
	s := known(secret, simple)
	for name, text := range map[string]string{
		"plain": secret, "in a query": url.QueryEscape(secret), "in a path": url.PathEscape(secret), "in small escapes": lowerEscapes(url.QueryEscape(secret)),
		"in JSON": string(quoted), "in JSON in JSON": string(twice), "in hex": hex.EncodeToString([]byte(simple)), "in big hex": strings.ToUpper(hex.EncodeToString([]byte(simple))),
		"in base64": base64.StdEncoding.EncodeToString([]byte(simple)), "in basic credentials": base64.StdEncoding.EncodeToString([]byte("u:" + simple)),
		"in base64 with two before": base64.URLEncoding.EncodeToString([]byte("to:ab" + simple + "tail")),
	} {
		got := s.Text("before " + text + " after")
		if !strings.Contains(got, Mark) || !strings.HasPrefix(got, "before ") || !strings.HasSuffix(got, " after") || strings.Contains(got, text) {
			t.Errorf("%s: %q became %q", name, text, got)
		}
	}
	if got := s.Text("nothing to see"); got != "nothing to see" {
		t.Errorf("%q", got)
	}
	s.Put("test")
	if got := s.Text(simple); got != simple {
		t.Errorf("a forgotten value is found: %q", got)
	}
}

func TestPartsAtTheEndsOfATextAreFound(t *testing.T) {
	t.Parallel()
	s := known(simple)
	for in, want := range map[string]string{
		"cut off " + simple[:12]: "cut off " + Mark, simple[9:] + " begins": Mark + " begins", simple[5:] + " and " + simple[:8]: Mark + " and " + Mark,
		"short " + simple[:7]: "short " + simple[:7], simple[:12] + " in the middle " + simple[:4]: simple[:12] + " in the middle " + simple[:4],
	} {
		if got := s.Text(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestSecretsAreKnownByTheirShape(t *testing.T) {
	t.Parallel()
	s := &Set{}
	for _, token := range []string{
		"ghp_" + strings.Repeat("aB3", 12), "github_pat_" + strings.Repeat("aB3_", 12), "glpat-abcdefghij0123456789", "sk-ant-api03-" + strings.Repeat("x1", 20),
		"sk-proj-" + strings.Repeat("x1", 20), "AKIA0123456789ABCDEF", "xoxb-123456789012-abcdef", "npm_" + strings.Repeat("a", 36), "AIza" + strings.Repeat("b", 35),
		"eyJhbGciOiJIUzI1NiJ9.eyJzY29wZSI6InNhbmRib3gifQ.c2lnbmF0dXJlLXNpZ25hdHVyZQ", strings.TrimSpace(pem),
	} {
		for _, text := range []string{token, "key=" + token + ".", `{"k":"` + token + `"}`} {
			got := s.Text(text)
			if !strings.Contains(got, Mark) || strings.Contains(got, token[len(token)-6:]) {
				t.Errorf("%q became %q", text, got)
			}
		}
	}
	if got := s.Text("clone https://ann:hunter22@host.test/x failed"); got != "clone https://ann:"+Mark+"@host.test/x failed" {
		t.Errorf("%q", got)
	}
	for _, text := range []string{
		"task-scheduler-configuration-v2-final", "sk-learn-is-a-name-of-something-long", "risk-0123456789abcdefghijk", "ghp_short", "go test -run=TestX -----BEGIN CERTIFICATE-----",
		"http://host:8080/a@b", "see https://example.org/a:b@c", "eyJhbGciOiJIUzI1NiJ9 is a header", "AKIAsomething", "commit 0123456789abcdef0123456789abcdef01234567",
	} {
		if got := s.Text(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

func TestStringsInJSONAreCleanedHoweverTheyAreEscaped(t *testing.T) {
	t.Parallel()
	var odd strings.Builder
	for _, c := range simple {
		odd.WriteString(`\u00` + hex.EncodeToString([]byte(string(c))))
	}
	s := known(simple, secret)
	in := `{"a": 12345678901234567890.10, "` + odd.String() + `":["x","y ` + simple + `"],"n":null,"q":"\"` + simple + `\\"}`
	got := s.JSON([]byte(in))
	if want := `{"a": 12345678901234567890.10, "********":["x","y ********"],"n":null,"q":"\"********\\"}`; string(got) != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if in := []byte(`{"a" :"b"}`); &s.JSON(in)[0] != &in[0] {
		t.Error("what has no secret was copied")
	}
}

func TestASecretInPiecesIsFound(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, text string }{
		{"a value", "it is " + simple + ", yes"}, {"a shape", "it is ghp_" + strings.Repeat("aB3", 12) + ", yes"}, {"a key", "it is " + pem + " yes"},
		{"several words", "it is correct horse battery staple, yes"}, {"base64", "it is " + base64.StdEncoding.EncodeToString([]byte("u:"+simple)) + " yes"},
	} {
		for size := 1; size < 40; size++ {
			s := known(simple, "correct horse battery staple")
			st := s.Stream()
			var out strings.Builder
			for i := 0; i < len(c.text); i += size {
				out.WriteString(st.Next(c.text[i:min(len(c.text), i+size)]))
			}
			out.WriteString(st.Rest())
			if want := s.Text(c.text); out.String() != want || !strings.Contains(want, Mark) {
				t.Fatalf("%s in pieces of %d: %q, want %q", c.name, size, out.String(), want)
			}
		}
	}
}

func TestAStreamTellsWhatIsWhole(t *testing.T) {
	t.Parallel()
	st := known(simple).Stream()
	if got := st.Next("two words"); got != "two " || !st.Held() {
		t.Errorf("%q", got)
	}
	if got := st.Next(" and\n"); got != "words and\n" || st.Held() {
		t.Errorf("%q", got)
	}
	if got := st.Next(strings.Repeat("x", maxHeld+1)); len(got) != maxHeld+1-maxHeld/4 {
		t.Errorf("%d bytes of one word are held", maxHeld+1-len(got))
	}
}

func TestASecretInAWordWithoutEndIsFound(t *testing.T) {
	t.Parallel()
	token := "ghp_" + strings.Repeat("aB3", 12)
	for before := maxHeld - maxHeld/4 - 60; before <= maxHeld+1; before += 13 {
		st := known(simple).Stream()
		var out strings.Builder
		text := strings.Repeat(".", before) + simple + "." + token + strings.Repeat(".", 2*maxHeld)
		for part := range slices.Chunk([]byte(text), 1009) {
			out.WriteString(st.Next(string(part)))
		}
		out.WriteString(st.Rest())
		if want := strings.Replace(strings.Replace(text, simple, Mark, 1), token, Mark, 1); out.String() != want {
			t.Fatalf("after %d bytes: %d bytes, want %d, and the value is in it: %v", before, out.Len(), len(want), strings.Contains(out.String(), simple[:10]))
		}
	}
	st := known(simple).Stream()
	if got := st.Next(strings.TrimSuffix(pem, "-----END OPENSSH PRIVATE KEY-----\n") + strings.Repeat("x", maxHeld)); got+st.Rest() != Mark {
		t.Errorf("a key that is longer than what may be held: %.100q", got)
	}
}

func TestOnlyTheEndsOfATextAreTakenForParts(t *testing.T) {
	t.Parallel()
	// Whoever knows how a secret begins can repeat it: that must cost no more than once.
	const times = 1 << 17
	head := simple[:minPart]
	if got := known(simple).Text(strings.Repeat(head, times)); got != strings.Repeat(head, times-1)+Mark {
		t.Errorf("%d of %d are left", strings.Count(got, head), times)
	}
}

func TestLogsAreCleaned(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := slog.New(NewHandler(known(simple), slog.NewTextHandler(&out, nil))).With("a", simple).WithGroup("g")
	log.Info("told "+simple, "err", errors.New("failed: "+simple), "in", slog.GroupValue(slog.String("k", simple)), "any", []string{simple}, "n", 7)
	if got := out.String(); strings.Contains(got, simple) || strings.Count(got, Mark) != 5 || !strings.Contains(got, "g.n=7") {
		t.Errorf("%s", got)
	}
}

func FuzzText(f *testing.F) {
	for _, s := range []string{"", simple, secret, pem, "eyJ.eyJ.", "://:@", "ghp_", "-----BEGIN PRIVATE KEY-----", `{"a":"\ud800"}`, "\xff\xfe"} {
		f.Add(s, s, 3)
	}
	f.Fuzz(func(t *testing.T, before, after string, size int) {
		s := known(simple, secret)
		got := s.Text(before + simple + after)
		if strings.Contains(got, simple) || len(got) > len(before+simple+after) {
			t.Fatalf("%q", got)
		}
		body, err := json.Marshal(map[string]string{before: secret + after})
		if err != nil {
			t.Fatal(err)
		}
		clean := s.JSON(body)
		var back map[string]string
		if err := json.Unmarshal(clean, &back); err != nil {
			t.Fatalf("%s became %s: %v", body, clean, err)
		}
		for k, v := range back {
			if strings.Contains(k+v, secret) {
				t.Fatalf("%q: %q", k, v)
			}
		}
		s.JSON([]byte(before))
		st := s.Stream()
		size = max(1, size&63)
		whole, out := before+" "+simple+" "+after, ""
		for i := 0; i < len(whole); i += size {
			out += st.Next(whole[i:min(len(whole), i+size)])
		}
		if out += st.Rest(); strings.Contains(out, simple) {
			t.Fatalf("in pieces of %d: %q", size, out)
		}
	})
}

func BenchmarkText(b *testing.B) {
	values := []string{secret}
	for i := range 100 {
		values = append(values, strings.Repeat(string(rune('a'+i%26)), 4)+simple+hex.EncodeToString([]byte{byte(i)}))
	}
	s := known(values...)
	text := strings.Repeat("func (s *Server) handle(ctx context.Context, err error) { log.Info(\"what https://example.org says\", \"n\", 12) }\n", 600)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		s.Text(text)
	}
}
