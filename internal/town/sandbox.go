package town

import "slices"

// SandboxState is where the town's one sandbox stands.
type SandboxState string

// The states of a sandbox.
const (
	SandboxAsleep   SandboxState = "asleep"
	SandboxQueued   SandboxState = "queued"   // wanted; waits for one of the server's slots
	SandboxStarting SandboxState = "starting" // the driver was asked; no hello yet
	SandboxAwake    SandboxState = "awake"
	SandboxDraining SandboxState = "draining" // told to checkpoint; may still come back
	SandboxStopping SandboxState = "stopping" // the point of no return
	SandboxWedged   SandboxState = "wedged"   // silent while the driver says it runs; being destroyed
)

var sandboxMoves = map[SandboxState][]SandboxState{
	SandboxAsleep:   {SandboxQueued, SandboxStopping}, // the latter when a restore finds one that runs
	SandboxQueued:   {SandboxStarting, SandboxAsleep},
	SandboxStarting: {SandboxAwake, SandboxStopping, SandboxWedged, SandboxAsleep},
	SandboxAwake:    {SandboxDraining, SandboxWedged, SandboxAsleep},
	SandboxDraining: {SandboxAwake, SandboxStopping, SandboxWedged, SandboxAsleep},
	SandboxStopping: {SandboxAsleep},
	SandboxWedged:   {SandboxAsleep},
}

func (s SandboxState) legal(to SandboxState) bool { return slices.Contains(sandboxMoves[s], to) }

// Running reports whether a sandbox of the current generation may exist.
func (s SandboxState) Running() bool { return s != SandboxAsleep && s != SandboxQueued }

// Sandbox is the town's one sandbox.
type Sandbox struct {
	State       SandboxState `json:"state"`
	Generation  int64        `json:"generation"` // rises with each start
	Since       Time         `json:"since"`      // when State was entered
	StartedAt   Time         `json:"started_at,omitempty"`
	Ref         string       `json:"ref,omitempty"`          // the driver's id
	StartHold   string       `json:"start_hold,omitempty"`   // the hold for which it was started
	StartReason string       `json:"start_reason,omitempty"` // in words
	StopReason  string       `json:"stop_reason,omitempty"`
	HelloBy     Time         `json:"hello_by,omitempty"`
	HelloAt     Time         `json:"hello_at,omitempty"` // the first of the generation
	LastSeen    Time         `json:"last_seen,omitempty"`
	Extended    int          `json:"extended,omitempty"`  // hello deadlines prolonged because nobody listened
	LastHold    Time         `json:"last_hold,omitempty"` // when the latest hold ended; 0 while one exists
	LastHoldWas string       `json:"last_hold_was,omitempty"`
	DrainBy     Time         `json:"drain_by,omitempty"`
	Drained     bool         `json:"drained,omitempty"`
	Position    int          `json:"position,omitempty"` // in the queue for a slot, from 1
	AdmitAt     Time         `json:"admit_at,omitempty"` // when to ask for a slot again
	FreshDisk   bool         `json:"fresh_disk,omitempty"`
	Floor       int64        `json:"floor,omitempty"`     // generations up to it belong to what a restore undid
	Leftover    int64        `json:"leftover,omitempty"`  // generation that a restore found running: it is stopped first
	Wedges      int          `json:"wedges,omitempty"`    // in a row
	Inspected   Time         `json:"inspected,omitempty"` // last answer of the driver while silent
	TokenAt     Time         `json:"token_at,omitempty"`  // issue time of the current token
	RenewAsked  bool         `json:"renew_asked,omitempty"`
	Stream      string       `json:"stream,omitempty"`  // of the runner's reports
	Seq         int64        `json:"seq,omitempty"`     // last report taken from it
	Unknown     bool         `json:"unknown,omitempty"` // the generation sent a report of unknown kind

	Starts   int64 `json:"starts"`
	Renewals int64 `json:"renewals"`
	AwakeMS  int64 `json:"awake_ms"` // booked so far, see Usage
	// AwakeBase is AwakeMS at the latest start.
	AwakeBase int64 `json:"awake_base,omitempty"`
}

// HoldReason is one of the only reasons that may keep a sandbox awake.
type HoldReason string

// The reasons for a hold.
const (
	HoldRun   HoldReason = "run"
	HoldGates HoldReason = "gates"
	HoldHuman HoldReason = "human"
)

// Hold says why the sandbox is wanted awake and until when at the latest. Holds
// are derived from the state, so one that outlives its cause can't exist.
type Hold struct {
	Reason  HoldReason `json:"reason"`
	Subject string     `json:"subject"` // run id, bead id of the merge, or the person
	Bead    string     `json:"bead,omitempty"`
	Since   Time       `json:"since"`
	Until   Time       `json:"until"`
}

// Name is how a hold is called in the ledger.
func (h Hold) Name() string { return string(h.Reason) + " " + h.Subject }

// Mode is what people asked of the whole town.
type Mode string

// The modes of a town.
const (
	ModeActive   Mode = "active"
	ModePaused   Mode = "paused"   // nothing new starts, running work finishes
	ModeSleeping Mode = "sleeping" // paused, and the sandbox drained now
	ModeDeleting Mode = "deleting"
	// ModeImporting is a town whose import goes on; it does nothing else.
	ModeImporting Mode = "importing"
)
