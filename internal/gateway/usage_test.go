package gateway

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// readUsage reads an answer in pieces of one byte, as the worst network would.
func readUsage(t *testing.T, contentType, answer string) (model string, got Tokens, known bool) {
	t.Helper()
	calls := 0
	u := newUsageReader(io.NopCloser(iotest.OneByteReader(strings.NewReader(answer))), contentType, func(m string, tk Tokens, k bool) {
		calls++
		model, got, known = m, tk, k
	})
	passed, err := io.ReadAll(u)
	if err != nil || string(passed) != answer {
		t.Fatalf("the answer became %q, %v", passed, err)
	}
	if err := u.Close(); err != nil || calls != 1 {
		t.Fatalf("close: %v; told %d times, want once", err, calls)
	}
	return model, got, known
}

func TestTheUsageOfEachWireFormatIsRead(t *testing.T) {
	t.Parallel()
	const stream = "text/event-stream; charset=utf-8"
	for _, tt := range []struct {
		name, contentType, answer, model string
		want                             Tokens
	}{
		{"chat completions, streamed", stream, `data: {"model":"m-1","choices":[{"delta":{"content":"hi"}}],"usage":null}

data: {"model":"m-1","choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":20,"prompt_tokens_details":{"cached_tokens":600}}}

data: [DONE]

`, "m-1", Tokens{Input: 400, Output: 20, CacheRead: 600}},
		{"chat completions, whole", "application/json", `{"model":"m-2","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}`, "m-2", Tokens{Input: 7, Output: 3}},
		{"responses, streamed", stream, `event: response.created
data: {"type":"response.created","response":{"model":"m-3","usage":null}}

event: response.completed
data: {"type":"response.completed","response":{"model":"m-3","usage":{"input_tokens":50,"output_tokens":9,"input_tokens_details":{"cached_tokens":10}}}}
`, "m-3", Tokens{Input: 40, Output: 9, CacheRead: 10}},
		{"messages, streamed", stream, `event: message_start
data: {"type":"message_start","message":{"model":"m-4","usage":{"input_tokens":12,"cache_creation_input_tokens":5,"cache_read_input_tokens":100,"output_tokens":1}}}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":77}}
`, "m-4", Tokens{Input: 12, Output: 77, CacheRead: 100, CacheWrite: 5}},
		{"messages, whole", "application/json", `{"model":"m-5","usage":{"input_tokens":1,"output_tokens":2}}`, "m-5", Tokens{Input: 1, Output: 2}},
		{"Gemini, streamed as a list", "application/json; charset=UTF-8", `[{"candidates":[{"content":{"parts":[{"text":"h"}]}}],"modelVersion":"m-9","usageMetadata":{"promptTokenCount":30}}
,
{"modelVersion":"m-9","usageMetadata":{"promptTokenCount":30,"candidatesTokenCount":4,"thoughtsTokenCount":300}}
]`, "m-9", Tokens{Input: 30, Output: 304}},
		{"Gemini, streamed", stream, `data: {"candidates":[{"content":{"parts":[{"text":"h"}]}}],"modelVersion":"m-8","usageMetadata":{"promptTokenCount":30,"totalTokenCount":30}}

data: {"candidates":[{"finishReason":"STOP"}],"modelVersion":"m-8","usageMetadata":{"promptTokenCount":30,"candidatesTokenCount":4,"thoughtsTokenCount":3,"cachedContentTokenCount":20}}
`, "m-8", Tokens{Input: 10, Output: 7, CacheRead: 20}},
		{"Gemini, whole", "application/json", `{"modelVersion":"m-9","usageMetadata":{"promptTokenCount":6,"candidatesTokenCount":2,"toolUsePromptTokenCount":1}}`, "m-9", Tokens{Input: 7, Output: 2}},
		{"Gemini, nonsense", "application/json", `{"modelVersion":"m","usageMetadata":{"promptTokenCount":9000000000000000000,"candidatesTokenCount":-1,"toolUsePromptTokenCount":9000000000000000000,"cachedContentTokenCount":-4}}`, "m", Tokens{Input: maxTokens}},
		{"a last line without an end", stream, `data: {"model":"m-6","usage":{"prompt_tokens":5,"completion_tokens":5}}`, "m-6", Tokens{Input: 5, Output: 5}},
		{"numbers from nowhere", "application/json", `{"model":"m-7","usage":{"prompt_tokens":-5,"completion_tokens":9000000000000000000}}`, "m-7", Tokens{Output: maxTokens}},
	} {
		model, got, known := readUsage(t, tt.contentType, tt.answer)
		if model != tt.model || got != tt.want || !known {
			t.Errorf("%s: %q %+v %v, want %q %+v", tt.name, model, got, known, tt.model, tt.want)
		}
	}
}

func TestAnAnswerWithoutUsageIsEstimated(t *testing.T) {
	t.Parallel()
	delta := "data: {\"model\":\"m\",\"choices\":[{\"delta\":{\"content\":\"hi\"}}],\"usage\":null}\n\n"
	for _, tt := range []struct {
		name, contentType, answer string
		want                      int64
	}{
		{"nothing", "application/json", "", 0},
		{"no JSON", "application/json", strings.Repeat("x", 100), 25},
		{"of an unknown type", "", strings.Repeat("x", 100), 25},
		{"too long to look at", "application/json", strings.Repeat(" ", 2*maxUsageLine), 2 * maxUsageLine / 4},
		{"a stream of a token per event", "text/event-stream", strings.Repeat(delta, 70), 70},
		{"what is made in the background", "application/json", `{"id":"r","status":"queued","background":true,"usage":null}`, laterOutput},
		{"what is made in the background, streamed", "text/event-stream", `data: {"type":"response.queued","response":{"background":true,"usage":null}}` + "\n", laterOutput},
		{"a stream of one large event", "text/event-stream", "data: " + strings.Repeat("x", 4394) + "\n", 1000},
	} {
		if _, got, known := readUsage(t, tt.contentType, tt.answer); known || got != (Tokens{Output: tt.want}) {
			t.Errorf("%s: %+v, known %v; want %d tokens of output", tt.name, got, known, tt.want)
		}
	}
}

func TestAStreamThatFailsBeforeItsFirstWordIsNotPaidFor(t *testing.T) {
	t.Parallel()
	const created, failed = `data: {"type":"response.created","response":{"model":"m","error":null,"usage":null}}` + "\n\n",
		`data: {"type":"response.failed","response":{"model":"m","usage":null,"error":{"code":"context_length_exceeded","message":"too long"}}}` + "\n\n"
	const word = `data: {"type":"response.output_text.delta","delta":"word"}` + "\n\n"
	for name, c := range map[string]struct {
		answer string
		paid   bool
	}{
		"a response that fails at once":  {created + failed, false},
		"an error at once":               {`data: {"error":{"message":"too long","code":400}}` + "\n\n", false},
		"an error that is a text":        {`data: {"error":"too long"}` + "\n\n", false},
		"a response that fails later":    {created + word + word + failed, true},
		"a response that is cut off":     {created, true},
		"an error after its usage":       {`data: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":12,"output_tokens":1}}}` + "\n\n" + `data: {"type":"error","error":{"type":"overloaded_error"}}` + "\n\n", true},
		"an error that is none":          {`data: {"error":null,"choices":[]}` + "\n\n" + word, true},
		"an answer that is not a stream": {"", true},
	} {
		contentType := "text/event-stream"
		if c.answer == "" {
			contentType, c.answer = "application/json", `{"error":{"message":"too long"}}`
		}
		if _, got, _ := readUsage(t, contentType, c.answer); (got.Total() > 0) != c.paid {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestAnAnswerThatIsGivenUpCountsUntilThen(t *testing.T) {
	t.Parallel()
	start := "data: {\"message\":{\"model\":\"m\",\"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\n"
	delta := "data: {\"type\":\"content_block_delta\"}\n\n"
	var got Tokens
	u := newUsageReader(io.NopCloser(strings.NewReader(start+strings.Repeat(delta, 500)+"data: more")), "text/event-stream",
		func(_ string, tk Tokens, _ bool) { got = tk })
	if _, err := io.ReadFull(u, make([]byte, len(start)+99*len(delta))); err != nil {
		t.Fatal(err)
	}
	if err := u.Close(); err != nil || got != (Tokens{Input: 9, Output: 100}) {
		t.Errorf("given up: %+v, %v; want 9 tokens of input and 100 of output", got, err)
	}
}

func TestALineTooLongForUsCostsOnlyItself(t *testing.T) {
	t.Parallel()
	long := "data: {\"model\":\"" + strings.Repeat("x", maxUsageLine) + "\",\"usage\":{\"prompt_tokens\":1}}\n"
	answer := long + "data: {\"model\":\"m\",\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":3}}\n"
	var got Tokens
	u := newUsageReader(io.NopCloser(strings.NewReader(answer)), "text/event-stream", func(_ string, tk Tokens, _ bool) { got = tk })
	if _, err := io.Copy(io.Discard, u); err != nil {
		t.Fatal(err)
	}
	if got != (Tokens{Input: 2, Output: 3}) {
		t.Errorf("after a long line: %+v", got)
	}
}

func FuzzUsage(f *testing.F) {
	f.Add("text/event-stream", []byte("data: {\"usage\":{\"prompt_tokens\":1}}\n\n"))
	f.Add("application/json", []byte(`{"model":"m","usage":{"input_tokens":1}}`))
	f.Add("text/event-stream", []byte("data: {\"modelVersion\":\"m\",\"usageMetadata\":{\"promptTokenCount\":3,\"cachedContentTokenCount\":9}}\r\n\r\n"))
	f.Add("text/event-stream", []byte("event: x\ndata: {\"message\":{\"usage\":{\"output_tokens\":-1}}}\r\n"))
	f.Fuzz(func(t *testing.T, contentType string, answer []byte) {
		calls := 0
		u := newUsageReader(io.NopCloser(bytes.NewReader(answer)), contentType, func(_ string, tk Tokens, known bool) {
			calls++
			for _, n := range []int64{tk.Input, tk.Output, tk.CacheRead, tk.CacheWrite} {
				if n < 0 || n > maxTokens {
					t.Errorf("usage %+v, known %v", tk, known)
				}
			}
		})
		passed, err := io.ReadAll(u)
		if err != nil || !bytes.Equal(passed, answer) || calls != 1 {
			t.Errorf("%d bytes became %d, %v, told %d times", len(answer), len(passed), err, calls)
		}
	})
}

func TestAPriceIsRoundedUpForEachKind(t *testing.T) {
	t.Parallel()
	p := Price{Input: 1_250_000, Output: 10_000_000, CacheRead: 125_000, CacheWrite: 1_500_000}
	for want, tk := range map[int64]Tokens{
		0:                   {},
		2:                   {Input: 1},
		2 + 10 + 1 + 2:      {Input: 1, Output: 1, CacheRead: 1, CacheWrite: 1},
		1_250_000 + 125_000: {Input: 1_000_000, CacheRead: 1_000_000},
	} {
		if got := p.Of(tk); got != want {
			t.Errorf("%+v cost %d, want %d", tk, got, want)
		}
	}
	most := Price{Input: MaxPrice, Output: MaxPrice, CacheRead: MaxPrice, CacheWrite: MaxPrice}
	if got := most.Of(Tokens{Input: maxTokens, Output: maxTokens, CacheRead: maxTokens, CacheWrite: maxTokens}); got <= 0 {
		t.Errorf("the most that can be costs %d", got)
	}
}
