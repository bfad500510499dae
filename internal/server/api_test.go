package server

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"gastown/internal/api"
	"gastown/internal/errs"
)

// operations lists method, path and description of all operations of the reference.
func operations(t *testing.T, l *lab, visit func(method, path string, op map[string]any)) map[string]any {
	t.Helper()
	var doc map[string]any
	l.callAs("", "GET", "/openapi.json", nil).want(200, &doc)
	for path, item := range doc["paths"].(map[string]any) {
		for method, op := range item.(map[string]any) {
			visit(strings.ToUpper(method), path, op.(map[string]any))
		}
	}
	return doc
}

var pathParam = regexp.MustCompile(`\{[^}]+\}`)

func TestEveryOperationNeedsTheToken(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	n := 0
	operations(t, l, func(method, path string, _ map[string]any) {
		n++
		path = pathParam.ReplaceAllString(path, "web-aaaaa")
		for _, token := range []string{"", "wrong", testToken + "x", testToken[:len(testToken)-1]} {
			p := l.callAs(token, method, path, nil).problem(401, errs.Unauthorized)
			if p.Hint == "" {
				t.Errorf("%s %s: no hint", method, path)
			}
		}
	})
	if n < 40 {
		t.Errorf("only %d operations", n)
	}
	for _, path := range []string{"/metrics", "/api/v1/nothing", "/nothing", "/debug/pprof/"} {
		l.callAs("", "GET", path, nil).problem(401, errs.Unauthorized)
	}
	for _, path := range []string{"/healthz", "/readyz", "/docs", "/docs/docs.js", "/docs/docs.css", "/openapi.json"} {
		l.callAs("", "GET", path, nil).want(200, nil)
	}
	for _, path := range []string{"/runner/v1/desired", "/runner/v1/prime", "/runner/v1/model/x/y"} {
		l.call("GET", path, nil).problem(401, errs.Unauthorized) // the admin token is no sandbox token
	}
}

func TestTheReferenceIsComplete(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ids := map[string]bool{}
	doc := operations(t, l, func(method, path string, op map[string]any) {
		name := method + " " + path
		id, _ := op["operationId"].(string)
		if id == "" || ids[id] {
			t.Errorf("%s: operationId %q is empty or taken", name, id)
		}
		ids[id] = true
		if s, _ := op["summary"].(string); s == "" {
			t.Errorf("%s has no summary", name)
		}
		if tags, _ := op["tags"].([]any); len(tags) != 1 {
			t.Errorf("%s has tags %v", name, tags)
		}
		params, _ := op["parameters"].([]any)
		for _, want := range pathParam.FindAllString(path, -1) {
			found := false
			for _, p := range params {
				found = found || p.(map[string]any)["in"] == "path" && "{"+p.(map[string]any)["name"].(string)+"}" == want
			}
			if !found {
				t.Errorf("%s does not document %s", name, want)
			}
		}
		responses := op["responses"].(map[string]any)
		for _, code := range []string{"401", "422", "500", "503"} {
			r, _ := responses[code].(map[string]any)
			if _, ok := r["content"].(map[string]any)[api.ProblemType]; !ok {
				t.Errorf("%s does not document %s", name, code)
			}
		}
		if strings.Contains(path, "{") && path != "/api/v1/providers/{name}" && responses["404"] == nil {
			t.Errorf("%s does not document 404", name)
		}
		success := 0
		for code, r := range responses {
			if code[0] != '2' {
				continue
			}
			success++
			content, _ := r.(map[string]any)["content"].(map[string]any)
			for kind, media := range content {
				if media.(map[string]any)["schema"] == nil || kind != "application/json" && kind != "text/event-stream" && kind != api.LinesType {
					t.Errorf("%s answers %s of kind %s without a proper schema", name, code, kind)
				}
			}
			if code != "204" && code != "202" && len(content) != 1 {
				t.Errorf("%s: %s has content %v", name, code, content)
			}
		}
		if success != 1 {
			t.Errorf("%s has %d successful answers", name, success)
		}
	})
	if v, _ := doc["openapi"].(string); !strings.HasPrefix(v, "3.1") {
		t.Errorf("openapi %q", v)
	}
	schemas := doc["components"].(map[string]any)["schemas"].(map[string]any)
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range regexp.MustCompile(`"#/components/schemas/([^"]+)"`).FindAllStringSubmatch(string(text), -1) {
		if schemas[ref[1]] == nil {
			t.Errorf("schema %s is missing", ref[1])
		}
	}
	if schemas["ErrorModel"] != nil || schemas["Problem"] == nil {
		t.Error("the error schema is not Problem")
	}
}

func TestThePageLoadsNothingFromElsewhere(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	r := l.callAs("", "GET", "/docs", nil).want(200, nil)
	if csp := r.header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || strings.Contains(csp, "http") {
		t.Errorf("policy %q", csp)
	}
	if strings.Contains(string(r.body), "//") && !strings.Contains(string(r.body), "<!doctype") {
		t.Error("the page names another host")
	}
}

func TestBadRequestsGetClearProblems(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.town("alpha")
	beads := "/api/v1/towns/alpha/beads"
	long := strings.Repeat("x", 10<<20)
	for _, c := range []struct {
		name, method, path string
		body               any
		status             int
		kind               errs.Kind
		detail             string
	}{
		{"a title of 10 MB", "POST", beads, api.CreateBead{Title: long}, 413, errs.Invalid, "too large"},
		{"a name of 10 MB", "POST", "/api/v1/towns", api.CreateTown{Name: long}, 413, errs.Invalid, "too large"},
		{"a title of 1 KB", "POST", beads, api.CreateBead{Title: long[:1024]}, 422, errs.Invalid, "title"},
		{"NUL in a title", "POST", beads, api.CreateBead{Title: "a\x00b"}, 422, errs.Invalid, "control character"},
		{"invalid UTF-8 in a title", "POST", beads, "{\"title\":\"a\xff\"}", 422, errs.Invalid, "UTF-8"},
		{"invalid UTF-8 in a name", "POST", "/api/v1/towns", "{\"name\":\"a\xff\"}", 400, errs.Invalid, "UTF-8"},
		{"an unknown field of a bead", "POST", beads, `{"title":"x","colour":"red"}`, 422, errs.Invalid, "colour"},
		{"an unknown field of a town", "POST", "/api/v1/towns", `{"name":"beta","colour":"red"}`, 422, errs.Invalid, "colour"},
		{"a wrong type", "POST", beads, `{"title":7}`, 422, errs.Invalid, "title"},
		{"no JSON", "POST", beads, `{"title":`, 422, errs.Invalid, "JSON"},
		{"two documents", "POST", beads, `{"title":"x"}{}`, 422, errs.Invalid, "more"},
		{"no body", "POST", "/api/v1/towns", nil, 400, errs.Invalid, "body"},
		{"an unknown rig", "POST", beads, api.CreateBead{Title: "x", Rig: "nope"}, 404, errs.NotFound, "nope"},
		{"an unknown town", "POST", "/api/v1/towns/nope/beads", api.CreateBead{Title: "x"}, 404, errs.NotFound, "nope"},
		{"an unknown bead", "GET", "/api/v1/beads/web-zzzzz", nil, 404, errs.NotFound, "web-zzzzz"},
		{"no bead id", "GET", "/api/v1/beads/..%2f..%2fx", nil, 422, errs.Invalid, "bead id"},
		{"an unknown setting", "PATCH", "/api/v1/towns/alpha/settings", api.SetSettings{Set: map[string]string{"modle": "x"}}, 422, errs.Invalid, "modle"},
		{"an unknown agent", "PATCH", "/api/v1/towns/alpha/settings", api.SetSettings{Set: map[string]string{"agent": "nobody"}}, 422, errs.Invalid, "nobody"},
		{"an unknown provider", "PATCH", "/api/v1/towns/alpha/settings", api.SetSettings{Set: map[string]string{"provider": "none"}}, 422, errs.Invalid, "none"},
		{"an unknown query parameter", "GET", beads + "?colour=red", nil, 422, errs.Invalid, "colour"},
		{"a limit too high", "GET", beads + "?limit=100000", nil, 422, errs.Invalid, "limit"},
		{"a foreign cursor", "GET", beads + "?cursor=%21%21", nil, 422, errs.Invalid, "cursor"},
		{"an unknown status", "GET", beads + "?status=done", nil, 422, errs.Invalid, "status"},
		{"an unknown address", "GET", "/api/v1/nothing", nil, 404, errs.NotFound, "nothing at this address"},
		{"a wrong method", "PUT", "/api/v1/towns", nil, 405, errs.Invalid, "GET"},
		{"a taken name", "POST", "/api/v1/towns", api.CreateTown{Name: "alpha"}, 409, errs.Conflict, "alpha"},
		{"a bad name", "POST", "/api/v1/towns", api.CreateTown{Name: "-x"}, 422, errs.Invalid, "name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := l.call(c.method, c.path, c.body)
			r.t = t
			p := r.problem(c.status, c.kind)
			if !strings.Contains(p.Detail+p.Hint, c.detail) {
				t.Errorf("detail %q, hint %q, want %q in it", p.Detail, p.Hint, c.detail)
			}
			if len(r.body) > 8<<10 {
				t.Errorf("an answer of %d bytes", len(r.body))
			}
		})
	}
	var list api.List[api.Bead]
	l.call("GET", beads, nil).want(200, &list)
	if len(list.Items) != 0 {
		t.Errorf("refused requests made %d beads", len(list.Items))
	}
}

func TestWhoAsksIsInTheLedgerAndHarmless(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.town("alpha")
	l.call("POST", "/api/v1/towns/alpha/beads", api.CreateBead{Title: "x", Staged: true}, api.HeaderUser, "Ada \u202e<b>").want(201, nil)
	var list api.List[api.LedgerEntry]
	l.call("GET", "/api/v1/towns/alpha/ledger?kind=bead.created", nil).want(200, &list)
	if len(list.Items) != 1 || !strings.HasPrefix(list.Items[0].Actor, "Ada ") || strings.Contains(list.Items[0].Actor, "\u202e") {
		t.Errorf("got %+v", list.Items)
	}
}

func TestHealthFollowsTheLoop(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.callAs("", "GET", "/readyz", nil).want(200, nil)
	r := l.call("GET", "/metrics", nil).want(200, nil)
	for _, name := range []string{"gastown_towns{sandbox=\"asleep\"}", "gastown_hall_commits_total", "gastown_http_request_duration_seconds"} {
		if !strings.Contains(string(r.body), name) {
			t.Errorf("no %s in the metrics", name)
		}
	}
	l.srv.Stop()
	l.callAs("", "GET", "/readyz", nil).problem(http.StatusServiceUnavailable, errs.Unavailable)
	l.callAs("", "GET", "/healthz", nil).want(200, nil)
}

func TestNobodyBorrowsTheNameOfARuleOrAnAgent(t *testing.T) {
	t.Parallel()
	for given, want := range map[string]string{"": "admin", "town": "admin", " TOWN ": "admin", "web/nux": "web-nux", "Ada": "Ada",
		"a\x00b\xff": "ab", strings.Repeat("é", 100): strings.Repeat("é", maxUser/2)} {
		r := &http.Request{Header: http.Header{}}
		r.Header.Set(api.HeaderUser, given)
		if got := who(r); got != want {
			t.Errorf("%q became %q", given, got)
		}
	}
}
