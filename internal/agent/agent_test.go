package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gastown/internal/errs"
)

// TestMain makes the test program serve as agents that misbehave: each reads
// requests as lines and answers by hand.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && strings.HasPrefix(os.Args[1], "rogue=") {
		rogue(strings.TrimPrefix(os.Args[1], "rogue="))
		return
	}
	os.Exit(m.Run())
}

type request struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
}

func rogue(how string) {
	fmt.Fprintln(os.Stderr, "rogue says", how, os.Getenv("SECRET_FOR_TEST"))
	if how == "dies" {
		os.Exit(7)
	}
	if how == "stubborn" {
		signal.Ignore(syscall.SIGTERM)
	}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var r request
		if json.Unmarshal(in.Bytes(), &r) != nil {
			continue
		}
		switch r.Method {
		case "initialize":
			if how == "mute" {
				continue
			}
			version, http := 1, how != "no http"
			if how == "version" {
				version = 99
			}
			reply(r, fmt.Sprintf(`{"protocolVersion":%d,"agentCapabilities":{"loadSession":%v,"mcpCapabilities":{"http":%v}}}`, version, how == "refuses load", http))
		case "session/new":
			if how == "login" {
				fmt.Printf(`{"jsonrpc":"2.0","id":%s,"error":{"code":-32000,"message":"Authentication required"}}`+"\n", r.ID)
				continue
			}
			reply(r, `{"sessionId":"s1"}`)
		case "session/load":
			fmt.Printf(`{"jsonrpc":"2.0","id":%s,"error":{"code":-32603,"message":"no such session"}}`+"\n", r.ID)
		case "session/prompt":
			turnOf(how, r, in)
		}
	}
	if how == "stubborn" {
		<-time.After(time.Hour)
	}
}

func reply(r request, result string) {
	fmt.Printf(`{"jsonrpc":"2.0","id":%s,"result":%s}`+"\n", r.ID, result)
}

func say(text string) {
	b, _ := json.Marshal(text)
	fmt.Printf(`{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s1","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":%s}}}}`+"\n", b)
}

func turnOf(how string, r request, in *bufio.Scanner) {
	switch how {
	case "chatty":
		for i := range 5000 {
			say(fmt.Sprint(i))
		}
	case "long line":
		w := bufio.NewWriter(os.Stdout)
		for range 9 << 10 {
			_, _ = w.WriteString(strings.Repeat("x", 1024))
		}
		_, _ = w.WriteString("\n")
		_ = w.Flush()
		return
	case "noise":
		fmt.Println("npm warn deprecated something")
		fmt.Println(`{"jsonrpc":"2.0","method":"_private/notice","params":{}}`)
	case "asks":
		for i, kind := range []string{`"kind":"read",`, `"kind":"edit",`, `"kind":"teleport",`, ``} {
			fmt.Printf(`{"jsonrpc":"2.0","id":"q%d","method":"session/request_permission","params":{"sessionId":"s1","toolCall":{%s"toolCallId":"t%d","title":"T"},"options":[{"kind":"reject_once","name":"n","optionId":"no"},{"kind":"allow_once","name":"y","optionId":"yes"}]}}`+"\n", i, kind, i)
			for in.Scan() {
				var a request
				if json.Unmarshal(in.Bytes(), &a) == nil && string(a.ID) == fmt.Sprintf("%q", fmt.Sprintf("q%d", i)) {
					say(string(a.Result))
					break
				}
			}
		}
	case "wants files":
		fmt.Println(`{"jsonrpc":"2.0","id":"f","method":"fs/read_text_file","params":{"sessionId":"s1","path":"/etc/passwd"}}`)
		in.Scan()
		say(in.Text())
	case "turn fails":
		fmt.Printf(`{"jsonrpc":"2.0","id":%s,"error":{"code":-32603,"message":"rate limited %s","data":{"errorKind":"rate_limit"}}}`+"\n", r.ID, os.Getenv("SECRET_FOR_TEST"))
		return
	case "deaf to cancel", "stubborn":
		say("started")
		return
	case "closes stdin":
		_ = os.Stdin.Close()
		<-time.After(time.Hour)
	case "closes stdout":
		_ = os.Stdout.Close()
		return
	}
	reply(r, `{"stopReason":"end_turn","usage":{"totalTokens":5,"inputTokens":3,"outputTokens":2}}`)
}

const secret = "s3cret-token-value"

type recorder struct {
	mu     sync.Mutex
	events []Event
	heard  chan Event
}

func (r *recorder) add(e Event) {
	r.mu.Lock()
	r.events = append(r.events, e)
	r.mu.Unlock()
	select {
	case r.heard <- e:
	default:
	}
}

func (r *recorder) of(k Kind) []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Event
	for _, e := range r.events {
		if e.Kind == k {
			out = append(out, e)
		}
	}
	return out
}

func rogueSpec(t *testing.T, how string) (Spec, *recorder) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	rec := &recorder{heard: make(chan Event, 64)}
	return Spec{
		Preset: Preset{
			Name: "rogue", Command: exe, Args: []string{"rogue=" + how}, Model: ModelConfig{Kind: ModelNone},
			InitTimeout: 20 * time.Second, SessionTimeout: 20 * time.Second, CancelTimeout: 200 * time.Millisecond,
			Permissions: PermissionPolicy{Kinds: map[string]Decision{"read": Allow, "edit": Deny}},
		},
		Dir: t.TempDir(), Env: []string{"SECRET_FOR_TEST=" + secret}, OnEvent: rec.add,
		MCP: []MCPServer{{Name: "gastown", URL: "http://127.0.0.1:1", Headers: map[string]string{"Authorization": "Bearer " + secret}}},
	}, rec
}

func startRogue(t *testing.T, how string) (*Agent, *recorder) {
	t.Helper()
	spec, rec := rogueSpec(t, how)
	a, err := Start(context.Background(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(0); err != nil {
			t.Error(err)
		}
	})
	return a, rec
}

func TestAFailedStartSaysWhichStep(t *testing.T) {
	t.Parallel()
	for how, c := range map[string]struct {
		edit func(*Spec)
		kind errs.Kind
		want []string
	}{
		"dies":    {nil, errs.Unavailable, []string{"initialize failed", "exit status 7", "rogue says dies [redacted]"}},
		"mute":    {func(s *Spec) { s.Preset.InitTimeout = 100 * time.Millisecond }, errs.Unavailable, []string{"initialize failed", "no answer within 100ms"}},
		"version": {nil, errs.Unavailable, []string{"initialize failed", "version 99"}},
		"no http": {nil, errs.Unavailable, []string{"tool servers over HTTP"}},
		"login":   {nil, errs.Unauthorized, []string{"session/new failed", "Authentication required"}},
		"no program": {func(s *Spec) {
			s.Preset.Command, s.Preset.InstallHint = "no-such-agent", "install it"
		}, errs.NotFound, []string{"no-such-agent", "install it"}},
		"no file": {func(s *Spec) { s.Preset.Command = filepath.Join(s.Dir, "none") }, errs.NotFound, []string{"not a program"}},
		"program in a relative PATH entry": {func(s *Spec) {
			if err := os.WriteFile(filepath.Join(s.Dir, "agent"), []byte("#!/bin/sh\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			wd, err := os.Getwd()
			if err != nil {
				t.Fatal(err)
			}
			rel, err := filepath.Rel(wd, s.Dir)
			if err != nil {
				t.Fatal(err)
			}
			s.Preset.Command, s.Env = "agent", []string{"PATH=" + rel}
		}, errs.NotFound, []string{"not in PATH"}},
		"no model":     {func(s *Spec) { s.Preset.Model = ModelConfig{Kind: ModelEnv, NeedsProvider: true} }, errs.Invalid, []string{"needs a model provider"}},
		"no directory": {func(s *Spec) { s.Dir = filepath.Join(s.Dir, "none") }, errs.Invalid, []string{"working directory"}},
		"no self":      {func(s *Spec) { s.Preset.Command = SelfCommand }, errs.Invalid, []string{"path of this program"}},
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			spec, _ := rogueSpec(t, how)
			if c.edit != nil {
				c.edit(&spec)
			}
			_, err := Start(context.Background(), spec)
			if !errs.Is(err, c.kind) {
				t.Fatalf("kind %s: %v", errs.KindOf(err), err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("no %q in: %v", w, err)
				}
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the secret is in: %v", err)
			}
		})
	}
}

func TestAChattyAgentLosesNothingWithASlowListener(t *testing.T) {
	t.Parallel()
	spec, _ := rogueSpec(t, "chatty")
	var got []string
	gate := make(chan struct{})
	spec.OnEvent = func(e Event) {
		if e.Kind == KindMessage {
			<-gate // more than the library's queue holds is waiting by now
			got = append(got, e.Text)
		}
	}
	a, err := Start(context.Background(), spec)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for range 5000 {
			gate <- struct{}{}
		}
	}()
	if stop, err := a.Prompt(context.Background(), "talk"); err != nil || stop != StopEndTurn {
		t.Fatalf("%q, %v", stop, err)
	}
	if len(got) != 5000 || got[0] != "0" || got[4999] != "4999" {
		t.Errorf("%d messages, from %q to %q", len(got), got[0], got[len(got)-1])
	}
	if err := a.Close(0); err != nil {
		t.Error(err)
	}
}

func TestALineThatIsTooLongEndsTheAgent(t *testing.T) {
	t.Parallel()
	a, _ := startRogue(t, "long line")
	_, err := a.Prompt(context.Background(), "go")
	if !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "more than 8388608 bytes") {
		t.Errorf("prompt: %v", err)
	}
	<-a.Done()
	if err := a.Err(); err == nil || !strings.Contains(err.Error(), "more than 8388608 bytes") {
		t.Errorf("err: %v", err)
	}
}

func TestNoiseOnStdoutIsAnEvent(t *testing.T) {
	t.Parallel()
	a, rec := startRogue(t, "noise")
	if stop, err := a.Prompt(context.Background(), "go"); err != nil || stop != StopEndTurn {
		t.Fatalf("%q, %v", stop, err)
	}
	noise := rec.of(KindNoise)
	if len(noise) != 1 || noise[0].Text != "npm warn deprecated something" {
		t.Errorf("noise: %+v", noise)
	}
	if usage := rec.of(KindUsage); len(usage) != 1 || !strings.Contains(string(usage[0].Raw), `"totalTokens":5`) {
		t.Errorf("usage: %+v", usage)
	}
}

func TestPermissionsAreAnsweredFromThePolicy(t *testing.T) {
	t.Parallel()
	a, rec := startRogue(t, "asks")
	if _, err := a.Prompt(context.Background(), "go"); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range rec.of(KindMessage) {
		var res struct {
			Outcome struct {
				OptionID string `json:"optionId"`
			} `json:"outcome"`
		}
		if err := json.Unmarshal([]byte(e.Text), &res); err != nil {
			t.Fatal(err)
		}
		got = append(got, res.Outcome.OptionID)
	}
	if s := strings.Join(got, " "); s != "yes no no no" {
		t.Errorf("answers: %s", s)
	}
	var decided []string
	for _, e := range rec.of(KindPermission) {
		decided = append(decided, e.ID+"="+e.Status)
	}
	if s := strings.Join(decided, " "); s != "t0=allow t1=deny t2=deny t3=deny" {
		t.Errorf("events: %s", s)
	}
}

func TestFilesAreNotOffered(t *testing.T) {
	t.Parallel()
	a, rec := startRogue(t, "wants files")
	if _, err := a.Prompt(context.Background(), "go"); err != nil {
		t.Fatal(err)
	}
	if m := rec.of(KindMessage); len(m) != 1 || !strings.Contains(m[0].Text, "-32601") {
		t.Errorf("answer: %+v", m)
	}
}

func TestAFailedTurnCarriesTheAgentsError(t *testing.T) {
	t.Parallel()
	a, rec := startRogue(t, "turn fails")
	_, err := a.Prompt(context.Background(), "go")
	var te *TurnError
	if !errs.Is(err, errs.Unavailable) || !errors.As(err, &te) || te.Code != -32603 || !strings.Contains(te.Data, "rate_limit") {
		t.Fatalf("got %v", err)
	}
	if strings.Contains(err.Error(), secret) {
		t.Errorf("the secret is in: %v", err)
	}
	for _, e := range rec.of(KindStderr) {
		if strings.Contains(e.Text, secret) {
			t.Errorf("the secret is in stderr: %s", e.Text)
		}
	}
}

func TestATurnThatIgnoresItsCancelIsGivenUp(t *testing.T) {
	t.Parallel()
	spec, rec := rogueSpec(t, "deaf to cancel")
	a, err := Start(context.Background(), spec)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for e := range rec.heard {
			if e.Text == "started" {
				cancel()
				return
			}
		}
	}()
	if _, err := a.Prompt(ctx, "go"); !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "within 200ms of the cancel") {
		t.Errorf("got %v", err)
	}
	if err := a.Close(time.Second); err != nil {
		t.Error(err)
	}
}

func TestAnAgentThatClosesAPipeIsEnded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ how, want string }{
		{"closes stdout", "closed its output"}, {"closes stdin", "closed its input"},
	} {
		t.Run(c.how, func(t *testing.T) {
			t.Parallel()
			spec, _ := rogueSpec(t, c.how)
			spec.Preset.CancelTimeout = time.Minute
			a, err := Start(context.Background(), spec)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if _, err := a.Prompt(ctx, "go"); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
			if err := a.Close(0); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAnAgentThatCannotLoadGetsANewSession(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"refuses load", "plain"} {
		spec, rec := rogueSpec(t, how)
		spec.LoadSession = "old"
		a, err := Start(context.Background(), spec)
		if err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		if a.SessionID() != "s1" {
			t.Errorf("%s: session %q", how, a.SessionID())
		}
		found := false
		for _, e := range rec.of(KindLifecycle) {
			found = found || e.Status == "not_resumed"
		}
		if !found {
			t.Errorf("%s: no event says that the session is new", how)
		}
		if err := a.Close(0); err != nil {
			t.Error(err)
		}
	}
}

func TestAnAgentThatIgnoresSIGTERMIsKilledAfterTheGrace(t *testing.T) {
	t.Parallel()
	a, rec := startRogue(t, "stubborn")
	if err := a.Close(50 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	last := rec.of(KindLifecycle)
	if e := last[len(last)-1]; e.Status != "exited" || e.Text != "signal: killed" {
		t.Errorf("last event: %+v", e)
	}
	if err := a.Err(); err != nil {
		t.Errorf("err after close: %v", err)
	}
}

func TestStderrIsCopiedWithoutSecrets(t *testing.T) {
	t.Parallel()
	spec, _ := rogueSpec(t, "plain")
	var buf bytes.Buffer
	spec.Stderr = &buf
	a, err := Start(context.Background(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Close(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	if got := buf.String(); got != "rogue says plain [redacted]\n" {
		t.Errorf("stderr: %q", got)
	}
	if err := a.Err(); err != nil {
		t.Errorf("err after close: %v", err)
	}
}

func TestReadLine(t *testing.T) {
	t.Parallel()
	br := bufio.NewReaderSize(strings.NewReader("one\n\n"+strings.Repeat("x", 100)+"\nlast"), 16)
	for _, want := range []string{"one", "", strings.Repeat("x", 100)} {
		if got, err := readLine(br, 101); err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
	}
	if got, err := readLine(br, 100); !errors.Is(err, io.EOF) || string(got) != "last" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := readLine(bufio.NewReaderSize(strings.NewReader(strings.Repeat("x", 102)), 16), 101); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("too long: %v", err)
	}
}
