package scrub

import (
	"strings"
)

// shape is a kind of secret that is known by how it begins.
type shape struct {
	prefix string
	least  int  // characters that must follow
	digit  bool // one of them must be a digit: else it is a name
}

// shapes are looked for at the beginning of a word, by its first byte.
func shapes(first byte) []shape {
	switch first {
	case 'g':
		return []shape{{"ghp_", 30, false}, {"gho_", 30, false}, {"ghu_", 30, false}, {"ghs_", 30, false}, {"ghr_", 30, false},
			{"github_pat_", 30, false}, {"glpat-", 20, true}}
	case 's':
		return []shape{{"sk-", 20, true}, {"sk_live_", 16, true}, {"sk_test_", 16, true}}
	case 'r':
		return []shape{{"rk_live_", 16, true}}
	case 'x':
		return []shape{{"xoxb-", 16, true}, {"xoxp-", 16, true}, {"xoxa-", 16, true}, {"xoxr-", 16, true}, {"xoxs-", 16, true}}
	case 'n':
		return []shape{{"npm_", 36, false}}
	case 'A':
		return []shape{{"AKIA", 16, true}, {"ASIA", 16, true}, {"AIza", 35, false}}
	case 'p':
		return []shape{{"pypi-", 40, true}}
	case 'h':
		return []shape{{"hf_", 30, false}}
	}
	return nil
}

// shapeAt is the length of what looks like a secret at i, 0 for nothing.
func shapeAt(text string, i int) int {
	if i > 0 && text[i-1] == ':' {
		if n := passwordAt(text, i); n > 0 {
			return n
		}
	}
	switch text[i] {
	case 'g', 's', 'r', 'x', 'n', 'A', 'p', 'h':
		if i > 0 && wordByte(text[i-1]) {
			return 0
		}
		return tokenAt(text, i)
	case 'e':
		if strings.HasPrefix(text[i:], "eyJ") && (i == 0 || !wordByte(text[i-1])) {
			return jwtAt(text, i)
		}
	case '-':
		return pemAt(text, i)
	}
	return 0
}

func wordByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-'
}

func tokenAt(text string, i int) int {
	for _, s := range shapes(text[i]) {
		if !strings.HasPrefix(text[i:], s.prefix) {
			continue
		}
		n, digit := len(s.prefix), false
		for i+n < len(text) && wordByte(text[i+n]) {
			digit = digit || '0' <= text[i+n] && text[i+n] <= '9'
			n++
		}
		if n-len(s.prefix) >= s.least && (digit || !s.digit) {
			return n
		}
	}
	return 0
}

// jwtAt finds three parts in base64 of which two begin as JSON does.
func jwtAt(text string, i int) int {
	n := 0
	for part := range 3 {
		start := i + n
		for i+n < len(text) && wordByte(text[i+n]) {
			n++
		}
		length := i + n - start
		if length < 8 || part == 1 && !strings.HasPrefix(text[start:], "eyJ") {
			return 0
		}
		if part < 2 {
			if i+n >= len(text) || text[i+n] != '.' {
				return 0
			}
			n++
		}
	}
	return n
}

const pemBegin = "-----BEGIN "

// pemAt finds a private key, up to the end of its last line; without that, to the
// end of the text.
func pemAt(text string, i int) int {
	last, ok := pemEnd(text, i)
	if !ok {
		return 0
	}
	if end := strings.Index(text[i:], last); end >= 0 {
		return end + len(last)
	}
	return len(text) - i
}

// pemEnd is the last line of the private key that begins at i.
func pemEnd(text string, i int) (last string, ok bool) {
	if !strings.HasPrefix(text[i:], pemBegin) {
		return "", false
	}
	kind, _, ok := strings.Cut(text[i+len(pemBegin):min(len(text), i+80)], "-----")
	return "-----END " + kind + "-----", ok && strings.HasSuffix(kind, "PRIVATE KEY")
}

// pemOpen reports whether what begins at i may be a key of which more comes.
func pemOpen(text string, i int) bool {
	if i >= len(text) {
		return false
	}
	last, ok := pemEnd(text, i)
	if !ok {
		return len(text)-i < 80 // its first line is not whole
	}
	return !strings.Contains(text[i:], last)
}

// passwordAt finds the password of scheme://user:password@host that begins at i.
func passwordAt(text string, i int) int {
	user := i - 1
	for user > 0 && i-user < 200 && (wordByte(text[user-1]) || text[user-1] == '.' || text[user-1] == '%') {
		user--
	}
	if !strings.HasSuffix(text[:user], "://") {
		return 0
	}
	for n := 0; i+n < len(text) && n < 4096; n++ {
		switch c := text[i+n]; {
		case c == '@':
			return n
		case c == '/' || c == '"' || c == '\'' || c == '`' || c <= ' ':
			return 0
		}
	}
	return 0
}
