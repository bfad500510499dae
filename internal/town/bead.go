package town

import (
	"slices"

	"gastown/internal/errs"
)

// BeadStatus is where a bead stands.
type BeadStatus string

// The statuses of a bead.
const (
	BeadOpen       BeadStatus = "open"
	BeadInProgress BeadStatus = "in_progress" // a run works on it
	BeadInReview   BeadStatus = "in_review"   // evidence is in the hub; it is being merged
	BeadClosed     BeadStatus = "closed"      // proven done
	BeadFailed     BeadStatus = "failed"      // attempts used up; a person may reopen
	BeadCancelled  BeadStatus = "cancelled"   // a person stopped it; a person may reopen
)

// Terminal reports whether the system never changes the bead again.
func (s BeadStatus) Terminal() bool {
	return s == BeadClosed || s == BeadFailed || s == BeadCancelled
}

// beadMoves is the table of legal transitions. A move out of a terminal status
// needs a person (see reopens).
var beadMoves = map[BeadStatus][]BeadStatus{
	BeadOpen:       {BeadInProgress, BeadClosed, BeadCancelled, BeadFailed},
	BeadInProgress: {BeadOpen, BeadInReview, BeadClosed, BeadFailed, BeadCancelled},
	BeadInReview:   {BeadOpen, BeadClosed, BeadFailed, BeadCancelled},
	BeadClosed:     {BeadOpen},
	BeadFailed:     {BeadOpen, BeadClosed, BeadCancelled},
	BeadCancelled:  {BeadOpen},
}

// legal reports whether a bead may move; person says that a named person asks.
func (s BeadStatus) legal(to BeadStatus, person bool) bool {
	if s.Terminal() && !person {
		return false
	}
	return slices.Contains(beadMoves[s], to)
}

// Class says who pays for a failure.
type Class string

// The classes of failure.
const (
	ClassWork  Class = "work"  // charged to the bead
	ClassInfra Class = "infra" // charged to a breaker, never to a bead
	ClassLimit Class = "limit" // parked until a stated time, charged to nobody
)

// Outcome says how a run ended.
type Outcome string

// The outcomes of a run.
const (
	OutcomeDone     Outcome = "done"
	OutcomeNoChange Outcome = "no_change"
	OutcomeStopped  Outcome = "stopped" // asked to stop: drain, cancel, pause of the town
	OutcomeExited   Outcome = "exited"  // ended its turns without a verdict
	OutcomeFailed   Outcome = "failed"  // could not be started or broke
	OutcomeLost     Outcome = "lost"    // its sandbox or lease went away
)

// ProofKind says why a bead counts as closed.
type ProofKind string

// The proofs that close a bead.
const (
	ProofMerged   ProofKind = "merged"    // the target branch contains the commit
	ProofNoChange ProofKind = "no_change" // an accepted verdict that nothing had to change
	ProofPerson   ProofKind = "person"    // a named person closed it
)

// Proof is the one recorded reason for which a bead is closed.
type Proof struct {
	Kind   ProofKind `json:"kind"`
	Commit string    `json:"commit,omitempty"` // the merge on the target, or the commit contained in it
	By     string    `json:"by,omitempty"`
	Reason string    `json:"reason,omitempty"`
	At     Time      `json:"at"`
}

// Failure is one entry of a bead's history of things that went wrong.
type Failure struct {
	At      Time   `json:"at"`
	Epoch   int64  `json:"epoch,omitempty"`
	Class   Class  `json:"class"`
	Charged bool   `json:"charged"`
	Reason  string `json:"reason"`
}

// RunRecord is what is kept of a run after its end.
type RunRecord struct {
	Epoch      int64   `json:"epoch"`
	Agent      string  `json:"agent"`
	Preset     string  `json:"preset"`
	Generation int64   `json:"generation,omitempty"`
	StartedAt  Time    `json:"started_at"`
	SpawnedAt  Time    `json:"spawned_at,omitempty"`
	EndedAt    Time    `json:"ended_at"`
	Outcome    Outcome `json:"outcome"`
	Class      Class   `json:"class,omitempty"`
	Reason     string  `json:"reason,omitempty"`
	Spent      Spend   `json:"spent,omitzero"`
	Marks      []Mark  `json:"marks,omitempty"`
}

// Bead is one work item.
type Bead struct {
	ID        string     `json:"id"`
	Rig       string     `json:"rig"`
	Title     string     `json:"title"`
	Body      string     `json:"body,omitempty"`
	Priority  int        `json:"priority"` // 0 is most urgent, 4 least; default 2
	Labels    []string   `json:"labels,omitempty"`
	Status    BeadStatus `json:"status"`
	Staged    bool       `json:"staged,omitempty"` // not yet slung
	BlockedBy []string   `json:"blocked_by,omitempty"`
	CreatedAt Time       `json:"created_at"`
	UpdatedAt Time       `json:"updated_at"`
	ClosedAt  Time       `json:"closed_at,omitempty"`
	CreatedBy string     `json:"created_by,omitempty"`

	// Overrides of settings for this bead alone (agent, provider, model, ...).
	Settings Settings `json:"settings,omitempty"`

	Attempt   int   `json:"attempt"`             // the try that is on or next, from 1
	Charged   int   `json:"charged,omitempty"`   // failures of class work since the last success or reopen
	Conflicts int   `json:"conflicts,omitempty"` // uncharged conflicts with newer commits since then
	Losses    int   `json:"losses,omitempty"`    // sandbox losses in a row while this bead ran
	Epoch     int64 `json:"epoch,omitempty"`     // of the latest run; rises with each
	NotBefore Time  `json:"not_before,omitempty"`
	Escalated bool  `json:"escalated,omitempty"` // waits for a person

	Agent         string `json:"agent,omitempty"`  // who works or worked on it last
	Branch        string `json:"branch,omitempty"` // its branch in the hub
	Base          string `json:"base,omitempty"`   // the commit that its work must descend from
	Start         string `json:"start,omitempty"`  // where the next run starts when not at the tip
	Commit        string `json:"commit,omitempty"` // verified evidence
	Checkpoint    string `json:"checkpoint,omitempty"`
	CheckpointRef string `json:"checkpoint_ref,omitempty"`
	Session       string `json:"session,omitempty"`       // the agent's own session id, to resume
	SessionEpoch  int64  `json:"session_epoch,omitempty"` // the run that opened or loaded it
	Interrupted   string `json:"interrupted,omitempty"`   // how the last run ended that was cut off, until a verdict or a charge
	Reason        string `json:"reason,omitempty"`        // what the next attempt is told
	Summary       string `json:"summary,omitempty"`       // what the last attempt said of itself

	Merge       *Merge      `json:"merge,omitempty"`
	MergeN      int         `json:"merge_n,omitempty"`      // number of the latest candidate
	ConflictTip string      `json:"conflict_tip,omitempty"` // the tip of the latest uncharged conflict
	Restarted   bool        `json:"restarted,omitempty"`    // was restarted once for being stuck
	Proof       *Proof      `json:"proof,omitempty"`
	LastCall    *Call       `json:"last_call,omitempty"`
	Runs        []RunRecord `json:"runs,omitempty"`     // newest last, at most maxRunRecords
	Failures    []Failure   `json:"failures,omitempty"` // newest last, at most maxFailures
	Nudges      []SentNudge `json:"nudges,omitempty"`   // newest last, at most maxNudges
	NudgeN      int         `json:"nudge_n,omitempty"`  // number of the latest
	Refs        bool        `json:"refs,omitempty"`     // the hub holds refs of it

	Spent   Spend  `json:"spent,omitzero"`     // by runs that ended, and gates; counts against its budget
	Past    Spend  `json:"past,omitzero"`      // the same from before a person reopened it
	FreshAt Time   `json:"fresh_at,omitempty"` // when a person reopened it
	Told    string `json:"told,omitempty"`     // the budget whose end people were told of
}

const (
	maxRunRecords = 50
	maxFailures   = 50
	maxNudges     = 20 // undelivered of one bead, and all that are kept of it
)

// Call names the latest accepted verdict, so that a repeat of the same call is
// accepted too.
type Call struct {
	Epoch int64  `json:"epoch"`
	ID    string `json:"id"`
}

// MergeState is where a candidate stands.
type MergeState string

// The states of a merge.
const (
	MergeQueued   MergeState = "queued"   // waits for its turn on rig and target
	MergeBuilding MergeState = "building" // the server builds the candidate in the hub
	MergeGating   MergeState = "gating"   // the runner runs the rig's gates on it
	MergeLanding  MergeState = "landing"  // the server pushes it upstream
	MergeWaiting  MergeState = "waiting"  // mode branch: waits until the target contains it
)

// Merge is the way of a bead's commit onto the target.
type Merge struct {
	N         int        `json:"n"` // candidate number, rises with each; 0 before the first
	State     MergeState `json:"state"`
	Since     Time       `json:"since"` // when the bead entered review: its place in the queue
	Tip       string     `json:"tip,omitempty"`
	Candidate string     `json:"candidate,omitempty"`
	Deadline  Time       `json:"deadline,omitempty"` // of the gates
	Lost      int        `json:"lost,omitempty"`     // leases lost in a row to others' pushes
	Pushed    bool       `json:"pushed,omitempty"`   // mode branch: the branch is upstream
	CheckedAt Time       `json:"checked_at,omitempty"`
	Asked     bool       `json:"asked,omitempty"` // mode branch: check again at once
	Gates     []GateRun  `json:"gates,omitempty"` // results on the current candidate
}

// GateRun is the result of one gate.
type GateRun struct {
	Name     string `json:"name"`
	Passed   bool   `json:"passed"`
	ExitCode int    `json:"exit_code"`
	TimedOut bool   `json:"timed_out,omitempty"`
	Millis   int64  `json:"ms"`
	Log      string `json:"log,omitempty"` // the last part; at most 64 KiB
}

// errStatus says that a bead's status forbids what was asked.
func errStatus(b *Bead, verb string) error {
	return errs.New(errs.Conflict, "bead %s is %s and can't be %s", b.ID, b.Status, verb)
}
