package agent

import (
	"context"
	"io"
	"os/exec"
	"time"
)

// StopReason says why a turn ended.
type StopReason string

// The stop reasons of the protocol.
const (
	StopEndTurn         StopReason = "end_turn"
	StopMaxTokens       StopReason = "max_tokens"
	StopMaxTurnRequests StopReason = "max_turn_requests"
	StopRefusal         StopReason = "refusal"
	StopCancelled       StopReason = "cancelled"
)

// Session is a running agent with one open session. All methods may be called
// from any goroutine.
type Session interface {
	// Prompt runs one turn and returns why it ended. One turn at a time: a second
	// call is errs.Conflict. When ctx ends, the turn is cancelled; Prompt
	// returns the agent's answer to that, or errs.Unavailable when it gives none
	// within the preset's cancel timeout. An error of the agent wraps *TurnError.
	Prompt(ctx context.Context, text string) (StopReason, error)
	// Cancel asks the agent to end the current turn; Prompt then returns.
	Cancel(ctx context.Context) error
	// Close closes the agent's stdin, sends SIGTERM to its group and, after
	// grace, SIGKILL. It returns when nothing is left. Harmless when repeated.
	Close(grace time.Duration) error
	// Done is closed when the process and its group are gone.
	Done() <-chan struct{}
	// Err says why the agent ended: nil while it runs or when Close ended it.
	Err() error
	// PID is the agent's process id, which is also its process group.
	PID() int
	// SessionID is the id to give as Spec.LoadSession later.
	SessionID() string
	// Spawned is when the process was started.
	Spawned() time.Time
}

// Starter starts sessions: Launch, or a fake.
type Starter func(ctx context.Context, spec Spec) (Session, error)

// Model is where an agent finds its model: the gateway on loopback.
type Model struct {
	Provider string // name of the provider, for the agent's own configuration
	BaseURL  string // to which the agent appends its API's path, e.g. /chat/completions
	Key      string // per-run token
	Name     string // name of the model
}

// MCPServer is a tool server that the agent connects to over streamable HTTP.
type MCPServer struct {
	Name    string
	URL     string
	Headers map[string]string
}

// Spec says what to start.
type Spec struct {
	Preset Preset
	// Dir is the working directory; absolute.
	Dir string
	// Env is the whole environment ("K=V"); nothing is inherited from this
	// process. The preset's own variables are added. The command is looked up
	// in the PATH given here.
	Env []string
	// Model is required when the preset needs a provider.
	Model *Model
	MCP   []MCPServer
	// Stderr receives the agent's stderr, secrets removed; may be nil. Errors of
	// writing are ignored.
	Stderr io.Writer
	// OnEvent is called for each event, one at a time; may be nil. It must not
	// call Prompt or Close.
	OnEvent func(Event)
	// LoadSession resumes a session where the agent can; else a new one is
	// opened and a lifecycle event says so.
	LoadSession string
	// SelfExe is the path of this program, for presets whose command is SelfCommand.
	SelfExe string
	// Start starts the agent's process, in place of cmd.Start: as another user, in a
	// wrapper, with limits. It may be nil.
	Start func(cmd *exec.Cmd) error
	slots []Model // of a shared process
	// sessionModel is the model that a session of a shared process chooses: its slot.
	sessionModel string
	// Gone is called when the agent has exited, before what it left is ended. nil is nothing.
	Gone func()
	// Sweep ends what the agent left where Start put it, and returns how many
	// processes live after the timeout; nil: they are found by a mark.
	Sweep func(timeout time.Duration) int
}
