package town

import "time"

// Desired is the document that the runner of a sandbox converges to. It is
// whole each time: the runner needs no history. Rev rises only when it changes.
type Desired struct {
	Town       string       `json:"town"`
	Generation int64        `json:"generation"`
	Rev        int64        `json:"rev"`
	Token      string       `json:"token,omitempty"` // set by the server when it hands the document out
	TokenAt    Time         `json:"token_at"`
	Drain      bool         `json:"drain,omitempty"` // checkpoint everything, end the agents, report drained
	Heartbeat  int64        `json:"heartbeat_ms"`
	Runs       []DesiredRun `json:"runs"`
	Gates      []GateJob    `json:"gates,omitempty"`
	Rigs       []DesiredRig `json:"rigs"`
}

// DesiredRig is what the runner must know of a rig that has work.
type DesiredRig struct {
	Name         string `json:"name"`
	Target       string `json:"target"`
	Tip          string `json:"tip"`
	Author       string `json:"author"`
	CheckpointMS int64  `json:"checkpoint_ms"`
	MaxFileMB    int    `json:"max_file_mb"`
}

// DesiredRun is a run that should exist, or should end when Stop is set.
type DesiredRun struct {
	ID          string `json:"id"`
	Bead        string `json:"bead"`
	Epoch       int64  `json:"epoch"`
	Role        Role   `json:"role"`
	Rig         string `json:"rig"`
	Agent       string `json:"agent"`
	Preset      string `json:"preset"`
	Provider    string `json:"provider,omitempty"`
	Model       string `json:"model,omitempty"`
	OwnProcess  bool   `json:"own_process,omitempty"` // no other run may share its agent's process
	Branch      string `json:"branch"`
	Base        string `json:"base"`                 // the commit that the work must descend from
	Start       string `json:"start"`                // the commit to begin at
	Resume      string `json:"resume,omitempty"`     // checkpoint to restore on top of Start's history
	ResumeRef   string `json:"resume_ref,omitempty"` // the ref that holds it
	Session     string `json:"session,omitempty"`    // agent session to load, where the agent can
	Prompt      string `json:"prompt"`
	TimeLimitMS int64  `json:"time_limit_ms"`
	TurnNudges  int    `json:"turn_nudges"`
	// What its processes may use together; 0 is no limit, -1 what the sandbox suggests.
	MaxMemoryMB  int `json:"max_memory_mb,omitempty"`
	MaxProcesses int `json:"max_processes,omitempty"` // and threads
	MaxDiskMB    int `json:"max_disk_mb,omitempty"`   // more than there was when it began
	// AllowHosts are the hosts that the server opens to it, when the run began.
	AllowHosts []string `json:"allow_hosts,omitempty"`
	// Expose are the names of values that it sees; Env has them as NAME=value, put in
	// by the server: they are in no row of the town.
	Expose []string `json:"expose,omitempty"`
	Env    []string `json:"env,omitempty"`
	Nudges []Nudge  `json:"nudges,omitempty"`
	// Verdict is the accepted verdict: the agent may finish its turn, then ends.
	Verdict Outcome `json:"verdict,omitempty"`
	// Stop says why the run must end now; "" lets it run.
	Stop string `json:"stop,omitempty"`
}

// GateJob asks the runner to run gates on a candidate that the server built.
type GateJob struct {
	Bead      string      `json:"bead"`
	N         int         `json:"n"`
	Rig       string      `json:"rig"`
	Ref       string      `json:"ref"`
	Candidate string      `json:"candidate"`
	Gates     []GateLimit `json:"gates"`
	// AllowHosts are the hosts that the server opens to the gates.
	AllowHosts []string `json:"allow_hosts,omitempty"`
	// Expose and Env are as those of a run.
	Expose []string `json:"expose,omitempty"`
	Env    []string `json:"env,omitempty"`
}

// GateLimit is a gate with its time limit.
type GateLimit struct {
	Name      string `json:"name"`
	Command   string `json:"command"`
	TimeoutMS int64  `json:"timeout_ms"`
}

// ReportKind is what a report tells.
type ReportKind string

// The reports.
const (
	ReportHeartbeat  ReportKind = "heartbeat"   // Runs: what lives in the sandbox
	ReportStarted    ReportKind = "run_started" // the agent's process was spawned: PID, Session
	ReportEnded      ReportKind = "run_ended"   // Outcome, Class, Reason, Subject (a breaker's or SubjectKilled, class infra; or SubjectOverflow, class work), WaitMS (class limit)
	ReportCheckpoint ReportKind = "checkpoint"  // Commit on Ref, TookMS
	ReportUnsaved    ReportKind = "unsaved"     // a checkpoint failed for Reason; "": they work again
	ReportNudged     ReportKind = "nudged"      // nudges up to Nudge were delivered
	ReportDrained    ReportKind = "drained"     // nothing runs any more
	// ReportLost stands in for a report that could not be taken: Reason says what
	// it was. The server makes one of what it can't read, the runner of what the
	// server does not take.
	ReportLost ReportKind = "lost"
)

// Report is one message of the runner. Which fields matter depends on Kind.
type Report struct {
	Kind    ReportKind `json:"kind"`
	Run     string     `json:"run,omitempty"`
	Epoch   int64      `json:"epoch,omitempty"`
	PID     int        `json:"pid,omitempty"`
	Session string     `json:"session,omitempty"`
	Outcome Outcome    `json:"outcome,omitempty"`
	Class   Class      `json:"class,omitempty"`
	Reason  string     `json:"reason,omitempty"`
	Subject string     `json:"subject,omitempty"`
	Commit  string     `json:"commit,omitempty"`
	Ref     string     `json:"ref,omitempty"`
	TookMS  int64      `json:"took_ms,omitempty"`
	Nudge   int        `json:"nudge,omitempty"`
	WaitMS  int64      `json:"wait_ms,omitempty"` // class limit: how long it lasts, as far as the provider said
	Runs    []RunLife  `json:"runs,omitempty"`
}

// RunLife says how long ago a run showed its last sign of life.
type RunLife struct {
	Run    string `json:"run"`
	Epoch  int64  `json:"epoch"`
	IdleMS int64  `json:"idle_ms"`
}

// Prime is what an agent is told of its work: the answer of the tool of that name.
type Prime struct {
	Bead     PrimeBead `json:"bead"`
	Run      string    `json:"run"`
	Agent    string    `json:"agent"`
	Role     Role      `json:"role"`
	Attempt  int       `json:"attempt"`
	Reason   string    `json:"reason,omitempty"` // why the last attempt was not enough
	Branch   string    `json:"branch"`
	Base     string    `json:"base"`
	Target   string    `json:"target"`
	Previous string    `json:"previous,omitempty"` // commit of the last attempt, for conflicts
	Gates    []string  `json:"gates,omitempty"`
	Trailers []string  `json:"trailers,omitempty"` // last lines of the message of each commit
	Rules    string    `json:"rules"`
}

// PrimeBead is the bead as an agent sees it.
type PrimeBead struct {
	ID       string   `json:"id"`
	Title    string   `json:"title"`
	Body     string   `json:"body"`
	Priority int      `json:"priority"`
	Labels   []string `json:"labels,omitempty"`
}

// maxClock is how far ahead of now a stored deadline may lie beyond its own
// length before it counts as written under a wrong clock.
const maxClock = time.Minute
