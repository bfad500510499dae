package town

import (
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestNamesAndIDs(t *testing.T) {
	for _, c := range []struct {
		check func(string) error
		ok    []string
		bad   []string
	}{
		{func(s string) error { return ValidName("town", s) }, []string{"a", "acme-2", "0", strings.Repeat("a", 40)},
			[]string{"", "-a", "a-", "A", "a_b", "a/b", "a b", "ä", "a\n", strings.Repeat("a", 41)}},
		{ValidPrefix, []string{"a", "web", "a23456789012"}, []string{"", "2a", "A", "a-b", "a234567890123", "a\n"}},
		{ValidBeadID, []string{"web-k3x9a", "a-00000"}, []string{"", "web", "web-k3x9", "web-k3x9ab", "web-K3X9A", "-web-k3x9a", "web-k3x9a\n", "web-k3x9a.1", "../web-k3x9a"}},
	} {
		for _, s := range c.ok {
			if err := c.check(s); err != nil {
				t.Error(err)
			}
		}
		for _, s := range c.bad {
			if !invalid(c.check(s)) {
				t.Errorf("%q was accepted", s)
			}
		}
	}
}

func TestClipCutsAtCharacters(t *testing.T) {
	for in, want := range map[string]string{"abc": "abc", "abcdef": "abcde…", "ääää": "ää…", "a\xffb": "a�b", "": ""} {
		if got := clip(in, 5); got != want {
			t.Errorf("clip(%q) = %q, want %q", in, got, want)
		}
	}
	if got := plain("a\x1b[0m\r\x00b\n\tc", 50); got != "a [0m  b\n\tc" {
		t.Errorf("%q", got)
	}
}

func TestTimesAtTheEndsOfTimeDoNotTurnAround(t *testing.T) {
	const last, first = Time(math.MaxInt64), Time(math.MinInt64)
	now := At(epoch0)
	for name, ok := range map[string]bool{
		"far ahead":         last.Sub(now) == math.MaxInt64,
		"far back":          first.Sub(now) == math.MinInt64,
		"now from far back": now.Sub(first) == math.MaxInt64,
		"end to end":        first.Sub(last) == math.MinInt64 && last.Sub(first) == math.MaxInt64,
		"a million years":   Time(365*86400*1000*1_000_000).Sub(0) == math.MaxInt64,
		"past the end":      last.Add(time.Second) == last && first.Add(-time.Second) == first,
		"inside":            now.Add(time.Hour).Sub(now) == time.Hour && now.Sub(now.Add(time.Hour)) == -time.Hour,
		"zero":              At(time.Time{}) == 0 && Time(0).Time().IsZero() && Time(0).String() == "never",
	} {
		if !ok {
			t.Error(name)
		}
	}
}

func FuzzValidBeadID(f *testing.F) {
	for _, s := range []string{"web-k3x9a", "a-00000", "", "-", "web-k3x9a\n", "web-..%2f", "a\x00-aaaaa"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, err := range []error{ValidBeadID(s), ValidName("rig", s), ValidPrefix(s)} {
			if err == nil && (s == "" || strings.HasPrefix(s, "-") || strings.ContainsAny(s, "/\\.\x00\n \"'$`~^:") || len(s) > 40) {
				t.Fatalf("%q was accepted", s)
			}
			if err != nil && (!utf8.ValidString(err.Error()) || len(err.Error()) > 400) {
				t.Fatalf("%q gave the error %q", s, err)
			}
		}
	})
}

func FuzzSplitIdentity(f *testing.F) {
	for _, s := range []string{"Gastown <gastown@localhost>", "a <b>", "a <b> <c>", "<a>", " <>", "a\n <b>", "a <b>c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, address, ok := SplitIdentity(s)
		if !ok {
			return
		}
		if name == "" || address == "" || name+" <"+address+">" != s || strings.ContainsAny(name+address, "<>\n\r\x00") {
			t.Fatalf("%q gave %q and %q", s, name, address)
		}
	})
}
