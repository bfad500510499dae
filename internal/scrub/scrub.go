// Package scrub takes secrets out of text that leaves: transcripts, reports, logs,
// notices, errors.
//
// A Set knows values, such as a provider's key, and finds each of them also where
// it was escaped for a URL or JSON, or is part of something in base64 or hex. Beside
// them it knows secrets by their shape: tokens of GitHub, GitLab, Slack, npm,
// Google, AWS and of model providers, JSON Web Tokens, private keys in PEM, and
// passwords in URLs. What is found becomes Mark, which is never longer than what
// it replaces.
//
// Text comes in pieces. Ends of a piece that may be a part of a known value (cut
// off by a limit) go, too; Stream holds the last word of each piece back until the
// next, so that a secret that two pieces share is found.
//
// Not found are: values shorter than MinSecret; other encodings, such as base64
// that is broken into lines, reversed text, or one letter per line; and parts of a
// value. An agent that wants to tell a secret can. This keeps the others from it.
package scrub

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

const (
	// Mark stands where a secret was.
	Mark = "********"
	// MinSecret is the length in bytes from which a value is looked for.
	MinSecret = 8
	// minPart is how much of a value's beginning, at the end of a text, or of its
	// end, at the beginning, is taken for a part of it.
	minPart = 8
)

// Set is a set of known values. The zero value knows only shapes; nil leaves all
// text as it is. It is safe for concurrent use; looking is without a lock.
type Set struct {
	mu     sync.Mutex          // guards values
	values map[string][]string // by owner
	now    atomic.Pointer[index]
}

// index finds the forms of all values by their first bytes.
type index struct {
	first  [1 << 13]uint64     // a bit for the hash of the first three bytes of each form
	forms  map[uint64][]string // by the first eight
	heads  map[uint64][]string // values by the first eight, for parts at the end of a text
	tails  map[uint64][]string // by the last eight, for parts at its beginning
	phrase []string            // values of several words
	most   int                 // the longest value
}

// Put replaces the values of an owner; without values it is forgotten. Values
// below MinSecret are left out. A value of several words or lines is looked for
// as a whole and by its long words.
func (s *Set) Put(owner string, values ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.values == nil {
		s.values = map[string][]string{}
	}
	if len(values) == 0 {
		if _, known := s.values[owner]; !known {
			return
		}
		delete(s.values, owner)
	} else {
		if slices.Equal(s.values[owner], values) {
			return
		}
		s.values[owner] = slices.Clone(values)
	}
	s.now.Store(newIndex(s.values))
}

// minWord is how long a word of a value must be to be a secret by itself.
const minWord = 16

func newIndex(owners map[string][]string) *index {
	plain := map[string]bool{}
	for _, values := range owners {
		for _, v := range values {
			v = strings.TrimSpace(v)
			if len(v) >= MinSecret {
				plain[v] = true
			}
			if words := strings.Fields(v); len(words) > 1 {
				for _, w := range words {
					if len(w) >= minWord {
						plain[w] = true
					}
				}
			}
		}
	}
	if len(plain) == 0 {
		return nil
	}
	x := &index{forms: map[uint64][]string{}, heads: map[uint64][]string{}, tails: map[uint64][]string{}}
	all := map[string]bool{}
	for _, v := range slices.Sorted(maps.Keys(plain)) {
		head, tail := key(v), key(v[len(v)-minPart:])
		x.heads[head], x.tails[tail] = append(x.heads[head], v), append(x.tails[tail], v)
		x.most = max(x.most, len(v))
		if strings.ContainsAny(v, " \t\r\n") {
			x.phrase = append(x.phrase, v)
		}
		for _, f := range formsOf(v) {
			all[f] = true
		}
	}
	for f := range all {
		k := key(f)
		x.forms[k] = append(x.forms[k], f)
		h := hash(f[0], f[1], f[2])
		x.first[h>>6] |= 1 << (h & 63)
	}
	for _, l := range x.forms {
		slices.SortFunc(l, func(a, b string) int { return len(b) - len(a) }) // the longest first
	}
	return x
}

func key(s string) uint64 { return binary.LittleEndian.Uint64([]byte(s[:8])) }

func hash(a, b, c byte) uint32 { return (uint32(a) | uint32(b)<<8 | uint32(c)<<16) * 2654435761 >> 13 }

// formsOf is a value in all the ways in which it is looked for.
func formsOf(v string) []string {
	forms := []string{v, url.QueryEscape(v), url.PathEscape(v), hex.EncodeToString([]byte(v)), strings.ToUpper(hex.EncodeToString([]byte(v)))}
	for _, f := range forms[1:3] {
		forms = append(forms, lowerEscapes(f))
	}
	if b, err := json.Marshal(v); err == nil {
		once := string(b[1 : len(b)-1])
		forms = append(forms, once)
		if b, err = json.Marshal(once); err == nil {
			forms = append(forms, string(b[1:len(b)-1]))
		}
	}
	// Base64 of something with v in it, at each of three offsets, without the
	// characters that depend on its neighbours.
	for before := range 3 {
		whole := append(make([]byte, before), v...)
		from, to := (before*8+5)/6, len(whole)*8/6
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			forms = append(forms, enc.EncodeToString(whole)[from:to])
		}
	}
	return slices.DeleteFunc(forms, func(f string) bool { return len(f) < MinSecret })
}

// lowerEscapes writes the digits of %XX in lower case.
func lowerEscapes(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:i+3], strings.ToLower(s[i+1:i+3]))
		}
	}
	return string(b)
}

// Text returns s without secrets; s itself where there are none.
func (s *Set) Text(text string) string {
	if s == nil {
		return text
	}
	x := s.now.Load()
	text = x.ofEnds(text)
	return replace(text, func(i int) int { return max(x.at(text, i), shapeAt(text, i)) })
}

// Bytes is Text.
func (s *Set) Bytes(b []byte) []byte {
	if out := s.Text(string(b)); len(out) != len(b) || out != string(b) {
		return []byte(out)
	}
	return b
}

// replace puts Mark over what length finds at each place.
func replace(text string, length func(i int) int) string {
	var out strings.Builder
	done := 0
	for i := 0; i < len(text); {
		n := length(i)
		if n == 0 {
			i++
			continue
		}
		out.WriteString(text[done:i])
		out.WriteString(Mark[:min(n, len(Mark))])
		i += n
		done = i
	}
	if done == 0 {
		return text
	}
	out.WriteString(text[done:])
	return out.String()
}

// at is the length of the known form that begins at i, 0 for none.
func (x *index) at(text string, i int) int {
	if x == nil || i+MinSecret > len(text) {
		return 0
	}
	h := hash(text[i], text[i+1], text[i+2])
	if x.first[(h>>6)&(1<<13-1)]&(1<<(h&63)) == 0 {
		return 0
	}
	for _, f := range x.forms[key(text[i:])] {
		if strings.HasPrefix(text[i:], f) {
			return len(f)
		}
	}
	return 0
}

// ofEnds replaces a part of a value at the ends of a text, one at each: texts come
// from strangers, and what stands before a part is no end.
func (x *index) ofEnds(text string) string {
	if x == nil {
		return text
	}
	after := ""
	if i := x.begun(text); i < len(text) {
		text, after = text[:i], Mark
	}
	for n := min(len(text), x.most); n >= minPart; n-- {
		for _, v := range x.tails[key(text[n-minPart:])] {
			if n < len(v) && strings.HasSuffix(v, text[:n]) {
				return Mark + text[n:] + after
			}
		}
	}
	return text + after
}

// begun is where the part of a value begins with which a text ends, the text's
// length for none.
func (x *index) begun(text string) int {
	for i := max(0, len(text)-x.most); i+minPart <= len(text); i++ {
		for _, v := range x.heads[key(text[i:])] {
			if len(text)-i < len(v) && strings.HasPrefix(v, text[i:]) {
				return i
			}
		}
	}
	return len(text)
}

// JSON returns a JSON text whose strings, and names of fields, have no secrets,
// however they are escaped. What is not a string is left alone, so numbers keep
// their digits; a text that is no JSON is treated as Text would.
func (s *Set) JSON(raw []byte) []byte {
	if s == nil {
		return raw
	}
	if !json.Valid(raw) {
		return s.Bytes(raw)
	}
	var out []byte
	done := 0
	for i := 0; i < len(raw); i++ {
		if raw[i] != '"' {
			continue
		}
		end := i + 1
		escaped := false
		for raw[end] != '"' {
			if raw[end] == '\\' {
				escaped = true
				end++
			}
			end++
		}
		end++
		if clean, changed := s.jsonString(raw[i:end], escaped); changed {
			out = append(append(out, raw[done:i]...), clean...)
			done = end
		}
		i = end - 1
	}
	if done == 0 {
		return raw
	}
	return append(out, raw[done:]...)
}

func (s *Set) jsonString(quoted []byte, escaped bool) ([]byte, bool) {
	text := string(quoted[1 : len(quoted)-1])
	if escaped {
		if err := json.Unmarshal(quoted, &text); err != nil {
			return nil, false // json.Valid took it
		}
	}
	clean := s.Text(text)
	if clean == text {
		return nil, false
	}
	b, err := json.Marshal(clean)
	return b, err == nil
}

// Stream finds secrets that pieces of one text share: it holds the last word of
// each piece back until the next. The zero value is not ready; see Set.Stream.
type Stream struct {
	set  *Set
	held string
}

// Stream begins a text.
func (s *Set) Stream() *Stream { return &Stream{set: s} }

// maxHeld bounds what a stream holds back, in bytes. A private key in PEM has less.
const maxHeld = 16 << 10

// Next takes a piece and returns what can be told.
func (t *Stream) Next(piece string) string {
	if t.set == nil {
		return piece
	}
	text := t.held + piece
	cut := len(text) - t.tail(text)
	t.held = text[cut:]
	if len(t.held) > maxHeld {
		cut = t.apart(text)
		t.held = text[cut:]
	}
	return t.clean(text[:cut])
}

// apart is where a text of which too much is held can be cut: so that the end
// that stays is short, but longer than most secrets, and none is on both sides.
func (t *Stream) apart(text string) int {
	cut := len(text) - maxHeld/4
	x := t.set.now.Load()
	for i := 0; i < cut; {
		n := max(x.at(text, i), shapeAt(text, i))
		if n > 0 && i+n > cut {
			if len(text)-i > maxHeld {
				return len(text) // it is longer than what may be held: all of it is covered
			}
			return i
		}
		i += max(n, 1)
	}
	return cut
}

// Rest ends the text and returns what was held back.
func (t *Stream) Rest() string {
	if t.set == nil {
		return ""
	}
	text := t.held
	t.held = ""
	return t.clean(text)
}

// Held reports whether something is held back.
func (t *Stream) Held() bool { return t.held != "" }

func (t *Stream) clean(text string) string {
	x := t.set.now.Load()
	return replace(text, func(i int) int { return max(x.at(text, i), shapeAt(text, i)) })
}

// tail is how many bytes at the end may go on in the next piece: the last word, a
// value of several words, a key that was begun.
func (t *Stream) tail(text string) int {
	n := 0
	for n < len(text) && !space(text[len(text)-1-n]) {
		n++
	}
	if i := strings.LastIndex(text, pemBegin); i >= 0 && pemOpen(text[:len(text)-n], i) {
		n = max(n, len(text)-i)
	}
	if x := t.set.now.Load(); x != nil {
		for _, v := range x.phrase { // of others the last word is held
			if i := strings.LastIndex(text, v); i >= 0 && i+len(v) > len(text)-n {
				n = max(n, len(text)-i)
			}
			for k := min(len(v)-1, len(text)); k > n; k-- {
				if strings.HasSuffix(text, v[:k]) {
					n = k
					break
				}
			}
		}
	}
	return n
}

func space(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }
