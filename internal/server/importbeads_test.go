package server

import (
	"fmt"
	"strings"
	"testing"

	"gastown/internal/api"
	"gastown/internal/errs"
)

func TestAListOfBeadsIsCreatedWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.town("acme")
	old := l.staged("acme", "an old one")
	const path = "/api/v1/towns/acme/beads/import"
	count := func() int {
		var out api.List[api.Bead]
		l.call("GET", "/api/v1/towns/acme/beads", nil).want(200, &out)
		return len(out.Items)
	}
	for name, c := range map[string]struct {
		lines, wants string
		status       int
	}{
		"nothing":           {"", "empty", 422},
		"no JSON":           {"{\"title\":\"a\"}\nhello\n", "line 2: not JSON", 422},
		"a blank line":      {"{\"title\":\"a\"}\n\n", "line 2: ", 422},
		"an unknown field":  {`{"title":"a","colour":"red"}`, `line 1: unknown field "colour"`, 422},
		"no title":          {`{"body":"b"}`, "line 1: title is empty", 422},
		"an unknown bead":   {`{"title":"a","blocked_by":["web-zzzzz"]}`, "line 1: no bead web-zzzzz", 404},
		"a name twice":      {"{\"title\":\"a\",\"name\":\"x\"}\n{\"title\":\"b\",\"name\":\"x\"}", "line 2: name", 422},
		"a cycle":           {"{\"title\":\"a\",\"name\":\"x\",\"blocked_by\":[\"y\"]}\n{\"title\":\"b\",\"name\":\"y\",\"blocked_by\":[\"x\"]}", "cycle", 422},
		"an unknown agent":  {`{"title":"a","settings":{"agent":"nobody"}}`, "line 1: ", 422},
		"more than allowed": {strings.Repeat("{\"title\":\"a\"}\n", maxBeadLines+1), "more than", 422},
	} {
		r := l.call("POST", path, c.lines)
		p := r.problem(c.status, map[int]errs.Kind{404: errs.NotFound, 422: errs.Invalid}[c.status])
		if !strings.Contains(p.Detail, c.wants) {
			t.Errorf("%s: %q, want %q", name, p.Detail, c.wants)
		}
	}
	if n := count(); n != 1 {
		t.Fatalf("%d beads after nothing but refusals", n)
	}
	good := fmt.Sprintf("{\"title\":\"last\",\"blocked_by\":[\"first\",%q]}\n{\"title\":\"first\",\"name\":\"first\",\"priority\":0}\n", old.ID)
	var made, again api.List[api.ImportedBead]
	l.call("POST", path, good, "Idempotency-Key", "k").want(201, &made)
	l.call("POST", path, good, "Idempotency-Key", "k").want(201, &again)
	if len(made.Items) != 2 || again.Items[1] != made.Items[1] || count() != 3 {
		t.Fatalf("made %+v, again %+v, %d beads", made, again, count())
	}
	var b api.Bead
	l.call("GET", "/api/v1/beads/"+made.Items[0].ID, nil).want(200, &b)
	if !b.Staged || len(b.BlockedBy) != 2 || b.BlockedBy[0] != made.Items[1].ID || b.BlockedBy[1] != old.ID {
		t.Fatalf("got %+v", b)
	}
	l.call("POST", path+"?sling=true", `{"title":"now"}`).want(201, &made)
	b = api.Bead{}
	l.call("GET", "/api/v1/beads/"+made.Items[0].ID, nil).want(200, &b)
	if b.Staged || b.Status != "in_progress" {
		t.Fatalf("got %+v", b)
	}
}

// FuzzReadBeads reads lists of strangers.
func FuzzReadBeads(f *testing.F) {
	for _, s := range []string{"", "\n", "{}", `{"title":"a"}`, "{\"title\":\"a\"}\n{\"name\":\"x\",\"blocked_by\":[\"y\"]}", `{"priority":1e9}`, `{"labels":null}`, "null", `{"title":"\ud800"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		beads, err := readBeads(data)
		switch {
		case err != nil && (len(beads) > 0 || !errs.Is(err, errs.Invalid)):
			t.Fatalf("%d beads and %v", len(beads), err)
		case err == nil && (len(beads) == 0 || len(beads) > maxBeadLines):
			t.Fatalf("%d beads", len(beads))
		}
	})
}
