package runner

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"gastown/internal/town"
)

const (
	openAITooLong = `{"error":{"message":"This model's maximum context length is 128000 tokens. However, your messages resulted in 131072 tokens.",` +
		`"type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}`
	anthropicTooLong = `{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 212345 tokens > 200000 maximum"}}`
	failedResponse   = "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"id\":\"r\",\"status\":\"failed\",\"error\":" +
		"{\"code\":\"context_length_exceeded\",\"message\":\"Your input is too much.\"}}}\n\n"
)

func TestAConversationThatIsTooLongIsFoundInTheAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		stream bool
		body   string
		want   int
	}{
		"chat completions":               {400, false, openAITooLong, 1},
		"Anthropic":                      {400, false, anthropicTooLong, 1},
		"a response that failed":         {200, true, "event: response.created\ndata: {\"type\":\"response.created\"}\n\n" + failedResponse, 1},
		"an error in a stream":           {200, true, "data: " + anthropicTooLong, 1},
		"another server's":               {400, false, `{"error":{"code":400,"message":"the request exceeds the available context size","type":"exceed_context_size_error"}}`, 1},
		"another mistake":                {400, false, `{"error":{"message":"no such model","code":"model_not_found"}}`, 0},
		"a model that speaks of it":      {200, true, `data: {"choices":[{"delta":{"content":"\"error\": context_length_exceeded, prompt is too long"}}]}` + "\n\n", 0},
		"a quoted error":                 {200, true, `data: {"type":"response.output_text.delta","delta":"x","response":null,"note":{"error":{"code":"context_length_exceeded"}}}` + "\n\n", 0},
		"an answer that is no stream":    {200, false, openAITooLong, 0},
		"a failure of the server":        {500, false, openAITooLong, 0},
		"no JSON":                        {400, false, `"error" prompt is too long`, 0},
		"a line that is too long":        {200, true, "data: " + strings.Repeat(" ", maxErrorLine) + openAITooLong + "\n", 0},
		"behind a line that is too long": {200, true, "data: " + strings.Repeat(" ", maxErrorLine) + "x\n" + failedResponse, 1},
	} {
		t.Run(name, func(t *testing.T) {
			hits, got := watched(t, c.status, c.stream, strings.NewReader(c.body))
			if hits != c.want || got != c.body {
				t.Errorf("%d hits, want %d; %d of %d bytes went through", hits, c.want, len(got), len(c.body))
			}
		})
	}
}

func watched(t *testing.T, status int, stream bool, body io.Reader) (hits int, passed string) {
	t.Helper()
	res := &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(body)}
	if stream {
		res.Header.Set("Content-Type", "text/event-stream; charset=utf-8")
	}
	watchOverflow(res, func() { hits++ })
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return hits, string(b)
}

func FuzzErrorReader(f *testing.F) {
	for _, seed := range []string{openAITooLong, anthropicTooLong, failedResponse, "data: {}\n\n", "data:\n", "\n\n\n", `{"error":{"code":5}}`, `{"error":[]}`} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	f.Fuzz(func(t *testing.T, body []byte, stream bool) {
		status := http.StatusBadRequest
		if stream {
			status = http.StatusOK
		}
		hits, passed := watched(t, status, stream, bytes.NewReader(body))
		if passed != string(body) {
			t.Fatal("the answer was changed")
		}
		if again, _ := watched(t, status, stream, iotest.OneByteReader(bytes.NewReader(body))); again != hits {
			t.Fatalf("%d hits in one piece, %d in many", hits, again)
		}
	})
}

// tooLong has a town whose model answers with the statuses of a text, one for
// each request: "x" is a conversation that is too long, anything else is good.
func tooLong(t *testing.T, nudges int) (f *fakeTown, h *hand, ask func(answers string)) {
	t.Helper()
	f = newTown(t)
	f.model = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/x") {
			return
		}
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, anthropicTooLong) // the test reads it
	})
	h = f.play(func(d *town.DesiredRun) { d.Provider, d.TurnNudges = "acme", nudges })
	return f, h, func(answers string) {
		t.Helper()
		for _, a := range answers {
			want := 200
			if a == 'x' {
				want = 400
			}
			if status, _ := get(t, h.session.Spec.Model.BaseURL+"/"+string(a), "X-Api-Key", h.session.Spec.Model.Key); status != want {
				t.Errorf("status %d", status)
			}
		}
	}
}

func TestATurnThatEndsOverATooLongConversationEndsTheRunAndItsSession(t *testing.T) {
	t.Parallel()
	for answers, over := range map[string]bool{"x": true, "ooooox": true, "oxo": true, "xoo": false, "ooo": false} {
		f, h, ask := tooLong(t, 1)
		ask(answers)
		close(h.release)
		e := f.awaitReport(town.ReportEnded, 0)
		if e.Outcome != town.OutcomeExited || e.Class != town.ClassWork || (e.Subject == town.SubjectOverflow) != over ||
			strings.Contains(e.Reason, "longer than the model's context") != over {
			t.Errorf("answers %q: ended %+v", answers, e)
		}
		if prompts := len(h.session.Prompts()); (prompts == 1) != over {
			t.Errorf("answers %q: it was prompted %d times", answers, prompts)
		}
	}
}

func TestAnAgentThatShortensItsConversationInVainIsStopped(t *testing.T) {
	t.Parallel()
	f, _, ask := tooLong(t, 1)
	ask(strings.Repeat("xoooo", maxOverflows) + strings.Repeat("xo", maxOverflows-1) + "x")
	e := f.awaitReport(town.ReportEnded, 0) // else the turn would never end
	if e.Outcome != town.OutcomeExited || e.Class != town.ClassWork || e.Subject != town.SubjectOverflow {
		t.Errorf("ended %+v", e)
	}
}

func TestOverflowsAreCountedInARow(t *testing.T) {
	for answers, want := range map[string]string{
		strings.Repeat("x", maxOverflows):                                     strconv.Itoa(maxOverflows),
		strings.Repeat("xooo", maxOverflows):                                  strconv.Itoa(maxOverflows*4 - 3),
		strings.Repeat("xoooo", 3*maxOverflows):                               "never",
		strings.Repeat("x", maxOverflows-1) + "oooo" + strings.Repeat("x", 3): "never",
	} {
		var o overflow
		got := "never"
		for i, a := range answers {
			if a != 'x' {
				o.good()
			} else if o.hit() && got == "never" {
				got = strconv.Itoa(i + 1)
			}
		}
		if got != want {
			t.Errorf("%s: once too often at %s, want %s", answers, got, want)
		}
	}
}
