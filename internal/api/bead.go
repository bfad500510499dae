package api

import (
	"encoding/json"
	"time"
)

// Bead is one work item.
type Bead struct {
	ID        string    `json:"id"`
	Town      string    `json:"town" doc:"Name of the town."`
	Rig       string    `json:"rig"`
	Title     string    `json:"title"`
	Body      string    `json:"body,omitempty"`
	Priority  int       `json:"priority" doc:"0 is most urgent, 4 least."`
	Labels    []string  `json:"labels,omitempty"`
	Status    string    `json:"status" enum:"open,in_progress,in_review,closed,failed,cancelled"`
	Staged    bool      `json:"staged,omitempty" doc:"Not yet slung."`
	BlockedBy []string  `json:"blocked_by,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	ClosedAt  time.Time `json:"closed_at,omitzero"`
	CreatedBy string    `json:"created_by,omitempty"`
	Attempt   int       `json:"attempt" doc:"The try that is on or next, from 1."`
	Attempts  int       `json:"attempts" doc:"The attempt number reached."`
	Charged   int       `json:"charged" doc:"Failures of work since the last success or reopen."`
	Escalated bool      `json:"escalated,omitempty" doc:"Waits for a person."`
	NotBefore time.Time `json:"not_before,omitzero"`

	Agent   string `json:"agent,omitempty"`
	Branch  string `json:"branch,omitempty"`
	Base    string `json:"base,omitempty" doc:"The commit that its work must descend from."`
	Commit  string `json:"commit,omitempty" doc:"Verified work."`
	Reason  string `json:"reason,omitempty" doc:"What the next attempt is told."`
	Summary string `json:"summary,omitempty" doc:"What the last attempt said of itself."`

	Checkpoint string `json:"checkpoint,omitempty" doc:"Latest work in progress that the server holds."`

	Spent   Spend    `json:"spent,omitzero" doc:"What it cost in all its life."`
	Uses    *Uses    `json:"uses,omitempty" doc:"What it is worked on with; not of an ended bead."`
	Budgets []Budget `json:"budgets,omitempty" doc:"Its limits that are set. They count since it was made, or reopened by a person."`

	Proof    *Proof            `json:"proof,omitempty"`
	Merge    *Merge            `json:"merge,omitempty"`
	Failures []Failure         `json:"failures,omitempty"`
	Nudges   []SentNudge       `json:"nudges,omitempty" doc:"Messages to its agents: the latest 20, newest last."`
	Runs     []Run             `json:"runs,omitempty" doc:"Newest last; the present one included."`
	Why      *Reason           `json:"why,omitempty"`
	Settings map[string]string `json:"settings,omitempty"`
	ETag     string            `json:"etag" doc:"For If-Match."`
}

// Proof is the one recorded reason for which a bead is closed.
type Proof struct {
	Kind   string    `json:"kind" enum:"merged,no_change,person"`
	Commit string    `json:"commit,omitempty"`
	By     string    `json:"by,omitempty"`
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at"`
}

// Merge is the way of a bead's commit onto the target.
type Merge struct {
	N         int         `json:"n" doc:"Number of the candidate."`
	State     string      `json:"state" enum:"queued,building,gating,landing,waiting"`
	Mode      string      `json:"mode,omitempty"`
	Commit    string      `json:"commit,omitempty"`
	Tip       string      `json:"tip,omitempty" doc:"The target's commit that the candidate was built on."`
	Candidate string      `json:"candidate,omitempty"`
	Since     time.Time   `json:"since,omitzero"`
	Gates     []GateState `json:"gates,omitempty"`
}

// GateState is the result of one gate.
type GateState struct {
	Name     string `json:"name"`
	Passed   bool   `json:"passed"`
	ExitCode int    `json:"exit_code"`
	TimedOut bool   `json:"timed_out,omitempty"`
	MS       int64  `json:"ms"`
	Log      string `json:"log,omitempty"`
}

// Failure is one thing that went wrong with a bead.
type Failure struct {
	At      time.Time `json:"at"`
	Epoch   int64     `json:"epoch,omitempty"`
	Class   string    `json:"class" enum:"work,infra,limit"`
	Charged bool      `json:"charged"`
	Reason  string    `json:"reason"`
}

// Run is a present or past run. Outcome is empty while it goes on.
type Run struct {
	ID         string    `json:"id"`
	Bead       string    `json:"bead"`
	Rig        string    `json:"rig"`
	Epoch      int64     `json:"epoch"`
	Role       string    `json:"role,omitempty"`
	Agent      string    `json:"agent"`
	Preset     string    `json:"preset"`
	Provider   string    `json:"provider,omitempty"`
	Model      string    `json:"model,omitempty"`
	State      string    `json:"state" enum:"starting,running,draining,ended"`
	Generation int64     `json:"generation,omitempty"`
	Branch     string    `json:"branch,omitempty"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	SpawnedAt  time.Time `json:"spawned_at,omitzero" doc:"When the agent's process was seen."`
	LifeAt     time.Time `json:"life_at,omitzero" doc:"Last sign of life."`
	EndedAt    time.Time `json:"ended_at,omitzero"`
	PID        int       `json:"pid,omitempty"`
	Verdict    string    `json:"verdict,omitempty"`
	Stop       string    `json:"stop,omitempty" doc:"Why it must end."`
	Outcome    string    `json:"outcome,omitempty"`
	Class      string    `json:"class,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	Spent      Spend     `json:"spent,omitzero"`
}

// Spend is what something cost. Tokens and cost are what the server's model
// gateway measured; what agents say of themselves is not counted.
type Spend struct {
	Runs       int64 `json:"runs" doc:"Runs started."`
	AwakeMS    int64 `json:"awake_ms" doc:"Time for which a sandbox was awake."`
	Tokens     int64 `json:"tokens"`
	CostMicros int64 `json:"cost_micros" doc:"Millionths of a dollar."`
}

// Budget is a limit and how it stands, in runs, milliseconds, tokens or
// millionths of a dollar.
type Budget struct {
	Scope   string    `json:"scope" enum:"bead,town,server"`
	What    string    `json:"what" enum:"runs,awake,tokens,cost"`
	Setting string    `json:"setting" doc:"The setting that gives the limit."`
	Limit   int64     `json:"limit"`
	Spent   int64     `json:"spent"`
	Granted int64     `json:"granted,omitempty" doc:"What runs may spend of it that is not reported yet."`
	Left    int64     `json:"left"`
	Since   time.Time `json:"since,omitzero" doc:"Begin of the present period."`
	Until   time.Time `json:"until,omitzero" doc:"When it counts anew by itself."`
}

// Agent is the permanent identity of a worker.
type Agent struct {
	ID     string    `json:"id"`
	Rig    string    `json:"rig"`
	Name   string    `json:"name"`
	Role   string    `json:"role"`
	Run    string    `json:"run,omitempty"`
	Bead   string    `json:"bead,omitempty"`
	Closed int       `json:"closed"`
	Failed int       `json:"failed"`
	Since  time.Time `json:"since,omitzero"`
}

// CreateBead makes a bead.
type CreateBead struct {
	ID        string            `json:"id,omitempty" doc:"Default: the rig's prefix, '-' and 5 random characters."`
	Rig       string            `json:"rig,omitempty" doc:"May be left out when the town has one rig."`
	Title     string            `json:"title" doc:"One line, at most 300 bytes."`
	Body      string            `json:"body,omitempty" doc:"At most 256 KiB."`
	Priority  *int              `json:"priority,omitempty" minimum:"0" maximum:"4" doc:"0 is most urgent, 4 least; default 2."`
	Labels    []string          `json:"labels,omitempty"`
	BlockedBy []string          `json:"blocked_by,omitempty"`
	Staged    bool              `json:"staged,omitempty" doc:"Wait until it is slung."`
	Settings  map[string]string `json:"settings,omitempty"`
}

// EditBead changes what is given.
type EditBead struct {
	Title    *string           `json:"title,omitempty"`
	Body     *string           `json:"body,omitempty"`
	Priority *int              `json:"priority,omitempty" minimum:"0" maximum:"4"`
	Labels   *[]string         `json:"labels,omitempty"`
	Set      map[string]string `json:"set,omitempty"`
	Unset    []string          `json:"unset,omitempty"`
}

// WithReason carries the reason of a person for what they ask.
type WithReason struct {
	Reason string `json:"reason,omitempty"`
}

// Nudge is a message to the agent at work.
type Nudge struct {
	Text      string `json:"text"`
	Interrupt bool   `json:"interrupt,omitempty" doc:"End the agent's turn, so that it reads the message at once. Else it reads it when the turn ends."`
}

// SentNudge is a message to the agents of a bead, and whether one read it.
type SentNudge struct {
	N           int       `json:"n" doc:"Its number; rises over all runs of the bead."`
	From        string    `json:"from"`
	Text        string    `json:"text"`
	Interrupt   bool      `json:"interrupt,omitempty"`
	At          time.Time `json:"at"`
	DeliveredAt time.Time `json:"delivered_at,omitzero" doc:"When an agent got it; missing while it waits."`
	Epoch       int64     `json:"epoch,omitempty" doc:"The run whose agent got it."`
}

// Blocker names a bead that must be done first.
type Blocker struct {
	On string `json:"on"`
}

// Diff is what a bead changed.
type Diff struct {
	Bead      string `json:"bead"`
	Base      string `json:"base"`
	Commit    string `json:"commit"`
	Diff      string `json:"diff"`
	Truncated bool   `json:"truncated"`
}

// TranscriptItem is one event of a run. Body is a JSON document of the agent's protocol.
type TranscriptItem struct {
	Run   string          `json:"run"`
	Epoch int64           `json:"epoch"`
	Seq   int64           `json:"seq"`
	At    time.Time       `json:"at"`
	Kind  string          `json:"kind"`
	Body  json.RawMessage `json:"body"`
}

// Names of the events of /beads/{bead}/logs and /towns/{town}/events. The data
// of the first is a TranscriptItem, of the second a LedgerEntry, of the third
// an End.
const (
	EventTranscript = "transcript"
	EventLedger     = "ledger"
	EventEnd        = "end"
)

// End is the last event of a stream of logs that was asked to end with the bead.
type End struct {
	Bead   string `json:"bead"`
	Status string `json:"status"`
}
